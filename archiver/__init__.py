"""What only the build machine needs: building, verifying and describing archives."""
