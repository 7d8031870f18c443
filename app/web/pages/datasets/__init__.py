"""Screens of datasets: the list with its upload area, one dataset with its report, the conversion of a CSV."""
