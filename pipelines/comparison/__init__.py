"""All methods on all tasks, beside full fine-tuning: runs, figures, plots and a page."""
