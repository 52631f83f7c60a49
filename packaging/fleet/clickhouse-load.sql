-- {files}: files of records, such as handshake-*.jsonl.gz in the server's user_files.
INSERT INTO handshake.records SELECT * FROM file('{files}', 'JSONEachRow')
SETTINGS
    date_time_input_format = 'best_effort',
    -- What a newer version of handshake writes besides.
    input_format_skip_unknown_fields = 1,
    input_format_json_ignore_unknown_keys_in_named_tuple = 1;
