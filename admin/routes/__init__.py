"""The routes of the HTTP door, a file for each subject."""
