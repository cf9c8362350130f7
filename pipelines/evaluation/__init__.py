"""Measuring a pipeline: questions, scores, intervals, and runs that survive being killed."""
