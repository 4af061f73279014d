"""TotalSegmentator's models in predictors that stay loaded; the only place besides demo/ that imports torch."""
