"""What a run says about itself to people: the model card (the HTML report will stand here too)."""
