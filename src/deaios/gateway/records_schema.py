"""The tables of the gateway's records."""

MIGRATIONS = (
    """
    CREATE TABLE responses (
        response_id TEXT PRIMARY KEY,
        key_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        document BLOB NOT NULL,
        turns BLOB NOT NULL,
        size_bytes INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX responses_by_key ON responses (key_id, created_at_ms);
    CREATE TABLE files (
        file_id TEXT PRIMARY KEY,
        key_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER,
        filename TEXT NOT NULL,
        purpose TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    CREATE INDEX files_by_key ON files (key_id, created_at_ms);
    CREATE TABLE uploads (
        upload_id TEXT PRIMARY KEY,
        key_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        filename TEXT NOT NULL,
        purpose TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        status TEXT NOT NULL,
        file_id TEXT
    ) STRICT;
    CREATE INDEX uploads_by_key ON uploads (key_id, created_at_ms);
    CREATE TABLE upload_parts (
        part_id TEXT PRIMARY KEY,
        upload_id TEXT NOT NULL REFERENCES uploads (upload_id) ON DELETE CASCADE,
        created_at_ms INTEGER NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    CREATE INDEX upload_parts_by_upload ON upload_parts (upload_id);
    CREATE TABLE batches (
        batch_id TEXT PRIMARY KEY,
        key_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        status TEXT NOT NULL,
        api TEXT NOT NULL,
        total INTEGER NOT NULL,
        document BLOB NOT NULL
    ) STRICT;
    CREATE INDEX batches_by_key ON batches (key_id, created_at_ms);
    CREATE TABLE batch_lines (
        batch_id TEXT NOT NULL REFERENCES batches (batch_id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        custom_id TEXT NOT NULL,
        body BLOB NOT NULL,
        draws BLOB NOT NULL,
        is_started INTEGER NOT NULL DEFAULT 0,
        is_good INTEGER,
        result BLOB,
        PRIMARY KEY (batch_id, number)
    ) STRICT;
    """,
    # Turns are objects: some have calls, or answer one.
    """
    UPDATE responses SET turns = CAST((
        SELECT json_group_array(json_object('role', value ->> 0, 'content', value ->> 1))
        FROM json_each(CAST(turns AS TEXT))
    ) AS BLOB);
    """,
)
