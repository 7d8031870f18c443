"""Screens of data sets: the list with its upload area, one data set with its report, the conversion of a CSV."""
