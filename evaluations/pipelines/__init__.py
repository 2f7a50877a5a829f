"""Whole jobs made of the commands of other entries: the quick start, AR probing, and the published scripts.

stages                 stages that several of them have
published_scripts      the stages of the published scripts, out of requests (what a user asks for) and
                       published_variables (what environment variables mean); running starts them, fit compares
                       the networks before
"""
