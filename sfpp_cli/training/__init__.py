"""From a recipe to a run folder: objectives, ODE pairs, previews, curves."""
