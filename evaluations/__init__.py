"""Honest evaluation: metrics in PyTorch, every number stamped with how it was made.

Measuring     metrics/ (what is computed), protocols/ (how), jobs/ (the evaluations behind the entries)
Images        image_sets (files to measure), image_pairs (originals and reconstructions of other programs),
              sample_stream (images that a generator draws)
Results       results (files of numbers and facts), result_intervals (their errors), comparison (which may be ranked)
Networks      probes/ (linear probes, principal components), digits/ (a classifier of digits), readback/ (a reader of
              drawn text, and what it reads after a tokenizer)
Pages         report/, atlas/ (tokens, codebook and samples to explore by hand), scaling/ (several tokenizers in one
              picture), doctor/ (looks for trouble in a run)
Sharing       publication/ (networks, their model card, and where they go), shipping (small models that come with the
              program)
Speed         benchmarks/ (measured against plain formulations and the limits of the machine),
              forked (work whose memory is measured in a process of its own)
Pipelines     pipelines/ (commands of other entries in a row), run_layout (where they put things)
Own pictures  own_data/ (what is in a folder, and recipes for it)
Costs         cost_model (of GPUs that are not here), workload (what a recipe asks for), cost_report (as a table)
Entries       reconstruction, generation, val_loss, search_cfg, measure, make_reference, compare, fingerprint, memory,
              estimate, data, init, linear_probe, ar_probe, probe_checkpoints, classifier, text_reader, text_readback,
              tokbench, side_by_side, visualize, quickstart, recipes, paper_tables, report, doctor, scaling, benchmarks,
              publish, ship, sweep, methods, train_vq_and_eval, train_c2i_and_eval, eval_c2i, lin_probe_and_eval;
              cli holds shared flags, preset_flags those of --protocol, measured_needs what --check asks of a
              measurement; console is the command `vt`, trainers says what trains a recipe, recipe_headers what its
              header tells
"""
