"""Autoencoders of other programs, to reconstruct images with and for nothing else: their codes or latents are not read.

base              the contract
autoencoder_kl    continuous tokenizers of diffusers, such as the VAEs of Stable Diffusion and FLUX
torchscript       programs in TorchScript, which bring code of their own
loading           which of them a source is
"""
