"""Pictures of one's own: what is in a folder, and recipes that train on it.

scan          each image of a folder, read once
duplicates    images that are the same file, or the same picture
survey        what the images of a folder have in common; as values for JSON
fit           what a recipe would do with them, and what suits them
survey_text   all that for people
split         which images are held out
recipe_text   values put into the text of a recipe, comments kept
recipes       the recipes for a folder, and the commands that train and look
example       a folder of mixed pictures to try all that on; an entry of its own
"""
