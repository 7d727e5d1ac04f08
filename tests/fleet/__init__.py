"""Tests of fleets: manifests, results, processes."""
