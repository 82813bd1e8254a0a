"""Region → tiles → network maps → instances → polygons, classes, measurements."""
