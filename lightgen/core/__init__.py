"""What a run is: artifacts, configurations, keyed draws, progress and metrics."""
