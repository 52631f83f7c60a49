-- Records in ClickHouse. Absent is NULL, as everywhere: unknown. Only of a list it is an empty list.
CREATE DATABASE IF NOT EXISTS handshake;

CREATE TABLE IF NOT EXISTS handshake.records
(
    schema UInt8,
    event LowCardinality(String),
    time DateTime64(6, 'UTC') CODEC(Delta, ZSTD),
    host LowCardinality(String),
    boot_id LowCardinality(String),
    id String CODEC(ZSTD),
    role LowCardinality(Nullable(String)),
    family LowCardinality(Nullable(String)),
    local Tuple(addr Nullable(String), port Nullable(UInt16)) CODEC(ZSTD),
    remote Tuple(addr Nullable(String), port Nullable(UInt16)) CODEC(ZSTD),
    netns Nullable(UInt32) CODEC(ZSTD),
    process Tuple(
        by LowCardinality(Nullable(String)), pid Nullable(UInt32), comm LowCardinality(Nullable(String)),
        cgroup LowCardinality(Nullable(String)), unit LowCardinality(Nullable(String)),
        container_id LowCardinality(Nullable(String)), pod_uid LowCardinality(Nullable(String))) CODEC(ZSTD),
    preexisting Nullable(Bool),
    open Tuple(
        outcome LowCardinality(Nullable(String)), duration_us Nullable(UInt64), rtt_us Nullable(UInt64),
        syn_retransmits Nullable(UInt16), final_ack LowCardinality(Nullable(String)),
        fast_open LowCardinality(Nullable(String)), fast_open_reason LowCardinality(Nullable(String)),
        simultaneous Nullable(Bool), syn_cookie Nullable(Bool), accept_wait_us Nullable(UInt64),
        listener Tuple(accept_queue Nullable(UInt32), accept_queue_limit Nullable(UInt32), drops Nullable(UInt32)))
        CODEC(ZSTD),
    tls Tuple(
        role LowCardinality(Nullable(String)), outcome LowCardinality(Nullable(String)), start_us Nullable(UInt64),
        duration_us Nullable(UInt64), held_us Nullable(UInt64), compute_us Nullable(UInt64),
        version LowCardinality(Nullable(String)), class LowCardinality(Nullable(String)),
        cipher LowCardinality(Nullable(String)), sni LowCardinality(Nullable(String)),
        alpn LowCardinality(Nullable(String)), group LowCardinality(Nullable(String)),
        signature LowCardinality(Nullable(String)),
        -- A text, because certificates end after the last time that ClickHouse knows.
        certificate Tuple(
            not_after Nullable(String), key_type LowCardinality(Nullable(String)), key_bits Nullable(UInt16),
            curve LowCardinality(Nullable(String)), signature LowCardinality(Nullable(String))),
        alpn_offered Array(String),
        ech_offered Nullable(Bool), alert LowCardinality(Nullable(String)),
        alert_from LowCardinality(Nullable(String)), error Nullable(String), library LowCardinality(Nullable(String)),
        source LowCardinality(Nullable(String)), round_trips Nullable(UInt8), hello_retry Nullable(Bool),
        hello_in_syn Nullable(Bool), includes_hello_wait Nullable(Bool),
        flights Array(Tuple(from LowCardinality(String), first_us UInt64, last_us UInt64)),
        stalls Array(Tuple(
            end LowCardinality(String), cause LowCardinality(Nullable(String)), duration_us UInt64, until_us UInt64)))
        CODEC(ZSTD),
    setup Tuple(
        round_trips Nullable(UInt8), duration_us Nullable(UInt64), excess_us Nullable(Int64)) CODEC(ZSTD),
    close Tuple(
        initiator LowCardinality(Nullable(String)), style LowCardinality(Nullable(String)),
        duration_us Nullable(UInt64), ack_wait_us Nullable(UInt64), app_wait_us Nullable(UInt64),
        time_wait_us Nullable(UInt64), time_wait_end LowCardinality(Nullable(String)), reused_by Nullable(String),
        late_fin Nullable(Bool), grain_us Nullable(UInt64), unseen LowCardinality(Nullable(String))) CODEC(ZSTD),
    lifetime_us Nullable(UInt64) CODEC(ZSTD)
)
-- A file that is loaded twice counts once: rows with the same sorting key are one.
ENGINE = ReplacingMergeTree
PARTITION BY toDate(time)
ORDER BY (event, host, time, boot_id, id)
TTL toDateTime(time) + INTERVAL 30 DAY
-- A day is deleted as a whole, and no row is looked at for it.
SETTINGS ttl_only_drop_parts = 1;

-- Each connection once, at its end, with the whole story; one without an end only when it has one.
CREATE VIEW IF NOT EXISTS handshake.connections AS
SELECT
    *,
    toDate(time) AS day,
    multiIf(
        tls.sni IS NOT NULL, tls.sni,
        role = 'client', remote.addr || ':' || toString(remote.port),
        role = 'server', coalesce(process.comm, 'unknown') || ':' || toString(local.port),
        NULL) AS service,
    multiIf(
        family = 'ipv4', toString(IPv4CIDRToRange(toIPv4OrNull(remote.addr), 24).1) || '/24',
        family = 'ipv6', toString(IPv6CIDRToRange(toIPv6OrNull(remote.addr), 48).1) || '/48',
        NULL) AS network
FROM handshake.records FINAL
WHERE event = 'close' OR (event = 'open' AND open.outcome IS DISTINCT FROM 'established')
    OR (event = 'tls' AND startsWith(id, 'tls-'));

-- Exact, and with all values in memory: quantileTDigest(0.99)(x) is the one for billions.
CREATE FUNCTION IF NOT EXISTS p50 AS (x) -> quantileExactInclusive(0.5)(x);
CREATE FUNCTION IF NOT EXISTS p99 AS (x) -> quantileExactInclusive(0.99)(x);
