"""Image data.

base       what a source of images is, and what a kind of source says of itself
folders, shards, packaged     the kinds that come with the project
tar_members    what one tar file holds
sources    their registry; open the images that a config names
identity   what a data set is, cheaply, and what has changed in it
classes    the one check that labels of two sets, or of a set and a network, mean the same
config     the `data` section of a config
images     decoding, float <-> uint8, grids
crops, samples                how an image becomes a training sample or a center crop
stream     the order of training samples, a pure function of (seed, position)
"""
