"""The names of the files that a run writes; without imports, for the commands that only ask for a name."""

RESULTS = "all_results.json"  # written last: where it is, the run is complete
MANIFEST = "manifest.json"  # of a checkpoint, likewise
CONFIGS = ("config.json", "generation_config.json", "preprocessor_config.json")
MODEL_FILES = ("model.safetensors", *CONFIGS, "README.md")
# Files that only a run writes; a model's also lie in its folder elsewhere, and README.md in a project's.
OF_A_RUN = (RESULTS, "trainer_state.json", "training_args.bin")
