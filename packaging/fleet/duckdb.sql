-- Records in DuckDB: the files themselves, as a view. {files}: such as /var/log/handshake/*.jsonl.gz.
-- Absent is NULL, as everywhere: unknown.
CREATE SCHEMA IF NOT EXISTS handshake;

CREATE OR REPLACE VIEW handshake.records AS
SELECT * FROM read_json('{files}', format = 'newline_delimited', columns = {
    schema: 'UTINYINT', event: 'VARCHAR', time: 'TIMESTAMP', host: 'VARCHAR', boot_id: 'VARCHAR', id: 'VARCHAR',
    role: 'VARCHAR', family: 'VARCHAR',
    local: 'STRUCT(addr VARCHAR, port USMALLINT)', remote: 'STRUCT(addr VARCHAR, port USMALLINT)', netns: 'UINTEGER',
    process: 'STRUCT("by" VARCHAR, pid UINTEGER, comm VARCHAR, cgroup VARCHAR, unit VARCHAR, container_id VARCHAR,
        pod_uid VARCHAR)',
    preexisting: 'BOOLEAN',
    open: 'STRUCT(outcome VARCHAR, duration_us UBIGINT, rtt_us UBIGINT, syn_retransmits USMALLINT, final_ack VARCHAR,
        fast_open VARCHAR, fast_open_reason VARCHAR, simultaneous BOOLEAN, syn_cookie BOOLEAN, accept_wait_us UBIGINT,
        listener STRUCT(accept_queue UINTEGER, accept_queue_limit UINTEGER, drops UINTEGER))',
    tls: 'STRUCT("role" VARCHAR, outcome VARCHAR, start_us UBIGINT, duration_us UBIGINT, held_us UBIGINT,
        compute_us UBIGINT, version VARCHAR, class VARCHAR, cipher VARCHAR, sni VARCHAR, alpn VARCHAR, "group" VARCHAR,
        signature VARCHAR, certificate STRUCT(not_after VARCHAR, key_type VARCHAR, key_bits USMALLINT, curve VARCHAR,
            signature VARCHAR),
        alpn_offered VARCHAR[], ech_offered BOOLEAN, alert VARCHAR, alert_from VARCHAR, error VARCHAR, library VARCHAR,
        source VARCHAR, round_trips UTINYINT, hello_retry BOOLEAN, hello_in_syn BOOLEAN, includes_hello_wait BOOLEAN,
        flights STRUCT("from" VARCHAR, first_us UBIGINT, last_us UBIGINT)[],
        stalls STRUCT("end" VARCHAR, cause VARCHAR, duration_us UBIGINT, until_us UBIGINT)[])',
    setup: 'STRUCT(round_trips UTINYINT, duration_us UBIGINT, excess_us BIGINT)',
    close: 'STRUCT(initiator VARCHAR, style VARCHAR, duration_us UBIGINT, ack_wait_us UBIGINT, app_wait_us UBIGINT,
        time_wait_us UBIGINT, time_wait_end VARCHAR, reused_by VARCHAR, late_fin BOOLEAN, grain_us UBIGINT,
        unseen VARCHAR)',
    lifetime_us: 'UBIGINT'});

-- Each connection once, at its end, with the whole story; one without an end only when it has one.
CREATE OR REPLACE VIEW handshake.connections AS
SELECT
    *,
    CAST(time AS DATE) AS day,
    CASE
        WHEN tls.sni IS NOT NULL THEN tls.sni
        WHEN role = 'client' THEN remote.addr || ':' || remote.port
        WHEN role = 'server' THEN coalesce(process.comm, 'unknown') || ':' || local.port
    END AS service,
    -- Of IPv6 the first three groups: "::" may stand for some of them, and zeros at their end are left out.
    CASE family
        WHEN 'ipv4' THEN regexp_replace(remote.addr, '[0-9]+$', '0/24')
        WHEN 'ipv6' THEN regexp_replace(
            regexp_extract(remote.addr, '^([0-9a-f]+:){0,2}:|^([0-9a-f]+:){3}'), '(:0)*:+$', '::/48')
    END AS network
FROM handshake.records
WHERE event = 'close' OR (event = 'open' AND open.outcome IS DISTINCT FROM 'established')
    OR (event = 'tls' AND starts_with(id, 'tls-'));

CREATE OR REPLACE MACRO p50(x) AS quantile_cont(x, 0.5);
CREATE OR REPLACE MACRO p99(x) AS quantile_cont(x, 0.99);
