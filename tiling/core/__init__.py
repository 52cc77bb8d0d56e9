"""What every part of specslide rests on: errors, files that appear whole, settings, signals, versions."""
