"""From a configuration to the parts of a run, each built here and nowhere else: data, readers, model, stage."""
