"""Keeps archives in a folder or an object store, by the SHA-256 of their files, and names them.

Enters: archives (`.mar` files) and addresses such as ``registry://digits:1.0``. Leaves: the same
archives, byte for byte, and the history of each tag. Must not import: `tuning` and the command
line. fsspec is imported only when a store is opened.

What lies in a store::

    blobs/12/34...          contents of one file of an archive, named by their SHA-256
    manifests/NAME/D.S.json which blobs make up an archive of digest D and SHA-256 S
    tags/NAME/TAG/N.json    the N-th archive to which a tag pointed; the highest number counts
    uploads/ID.json         what a push in progress needs; `gc` leaves it alone
    collections/ID.json     a `gc` in progress, for whose end pushes wait

Blobs and manifests never change. A manifest is written after its blobs, and an entry of a tag after
its manifest. So whatever is interrupted, every tag leads to a whole archive.
"""
