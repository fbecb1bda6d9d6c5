"""Runs on a Prefect server: a server and a worker here, deployments, what they run, and their flow runs."""
