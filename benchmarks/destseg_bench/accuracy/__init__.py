"""How well it detects: trained models on test sets, beside the tables of the paper."""
