"""The methods: one file each, found without an edit of any other."""

if __name__ != "tokred.methods":
    raise ImportError("import tokred.methods, not methods: the folder has one import name, so that a class exists once")
