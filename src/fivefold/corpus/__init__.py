"""Raw text in: files, folders, archives, Hub data sets and a catalogue of named corpora become documents."""
