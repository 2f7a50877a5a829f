"""Image data.

base       what a source of images is, and what a kind of source says of itself
folders, shards, nested_tar, parquet, packaged    the kinds that come with the project
listing, layout    what lies in a folder, and whether its sub-folders are classes
held_out   the list of images that are kept for validation
tar_members    what one tar file holds
index_file, folder_index, name_table    the places of many images, mapped into memory
sources    their registry; open the images that a config names
identity   what a data set is, cheaply, and what has changed in it
classes    the one check that labels of two sets, or of a set and a network, mean the same
config     the `data` section of a config
images, header     decoding, float <-> uint8; what a file says before it is decoded
grids      grids of images as one picture for people
decoding, resampling          from stored pixels to RGB; windows of resized images
crops, samples                how an image becomes a training sample or a center crop
fast_decode                   the same in less time, with slightly other pixels
permutation, order            which sample stands at which position, a pure function of (seed, position)
loader     batches that are read ahead by processes, in order
stream     the batches of a training
wait       how much of a training waits for them
"""
