buildTokens(document.getElementById("tokens"));
buildCodebooks(document.getElementById("codebook"));
const samplesPlace = document.getElementById("samples");
if (samplesPlace) buildSamples(samplesPlace);
document.documentElement.dataset.ready = "true"; // for whoever waits for the page
