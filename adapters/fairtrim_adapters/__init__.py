"""The glue between fairtrim and its hosts: one module for each."""
