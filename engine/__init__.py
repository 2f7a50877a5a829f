"""The ground floor: configs, processes, training, checkpoints, data. It imports nothing from above.

Configs and entries   config, validation, registry, plugins, aliases, cli, messages
Processes             world, devices, parallel, memory_plan
Training              loop, trained_model, optim, schedules, run_log, run_record, alerts
Files                 checkpoint/, assets, pipeline
Images                data/, image_metrics
"""
