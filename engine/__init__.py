"""The ground floor: configs, processes, training, checkpoints, data. It imports nothing from above.

Reading configs    config (load, compare, write), yaml_files (files and their bases), config_merge (all problems),
                   config_trees (copies of defaults), aliases (old spellings), config_help (`--help-config`),
                   recipe_names (shipped recipes)
Config sections    validation (checks), config_types (types in words), registry (components by name), plugins
Entries            cli, messages, counts (of things, in words), preflight (`--check`), arguments (of functions that
                   are called from Python), near_names (suggestions)
Processes          launcher (torchrun), stopping (signals), watchdog (hangs), time_limits, world, devices, cores,
                   parallel, sharding (FSDP2), without_storage (networks to look at), memory_plan (`--plan`),
                   saved_tensors (what a pass saves for backward), peak_memory (what one without gradients holds),
                   torch_versions (what older versions of PyTorch need)
Training           training_world (its processes and threads), loop, agreement (of processes, to stop), trained_model,
                   optim, schedules, averages (EMA), skipped_updates (counted on the device), buffers (put back after a
                   bad step)
Record of a run    run_log, tracker, trackers (their registry), wandb_run, tensorboard_log, folder_lock, run_record,
                   alerts, progress, meters (rates and waiting),
                   flops (operations of a step), gpus (what they can do), json_text (the one writer of JSON)
Files              checkpoint/, assets (pretrained networks), hub (networks to fetch), hub_upload, sharing (what may
                   leave this machine), pretrained (networks as objects), shipped_models (small ones that come with the
                   program),
                   half_precision (as storage), pipeline (commands that can be stopped),
                   installation (where those of the program lie: a checkout or a wheel),
                   outputs (where commands may write), atomic_file (written as a whole or not at all),
                   facts (what differs between two manifests)
Images             data/, index_images (the entry that looks up the images of a large set), image_metrics,
                   image_anchors (reconstructions without a network)
Numbers            arithmetic, seeds, philox (many random numbers at once), finite (nothing is NaN or infinite)
"""

__version__ = "0.1.0"
