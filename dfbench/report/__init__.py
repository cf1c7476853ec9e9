"""What people look at: the HTML page with its plots and the images that detectors got wrong."""
