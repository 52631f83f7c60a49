-- Ten questions to a fleet, for ClickHouse and DuckDB alike.

-- slowest_services: which services are slow to set up, and how much of it does the network not explain?
SELECT service, role, count(*) AS connections,
    p50(setup.duration_us) / 1000 AS p50_ms,
    p99(setup.duration_us) / 1000 AS p99_ms,
    p99(setup.excess_us) / 1000 AS p99_excess_ms,
    max(setup.round_trips) AS most_round_trips
FROM handshake.connections
WHERE setup.duration_us IS NOT NULL
GROUP BY service, role
ORDER BY p99_ms DESC
LIMIT 20;

-- round_trips_to_save: which services take more than the two round trips of TCP and TLS 1.3, why, and what does it cost in a day?
SELECT day, service, role,
    CASE
        WHEN tls.hello_retry THEN 'the server wants another group (HelloRetryRequest)'
        WHEN tls.version <> '1.3' THEN 'TLS 1.2 or older'
        ELSE 'other'
    END AS reason,
    count(*) AS connections,
    sum(setup.round_trips - 2) AS round_trips,
    sum((setup.round_trips - 2) * open.rtt_us) / 3600e6 AS hours
FROM handshake.connections
WHERE setup.round_trips > 2 AND open.rtt_us IS NOT NULL
GROUP BY day, service, role, reason
ORDER BY hours DESC
LIMIT 20;

-- old_tls: what still speaks TLS 1.0 or 1.1?
SELECT service, role, host, process.comm AS program, tls.version AS version, count(*) AS handshakes, max(time) AS last
FROM handshake.connections
WHERE tls.outcome = 'completed' AND tls.version IN ('1.0', '1.1')
GROUP BY service, role, host, program, version
ORDER BY handshakes DESC
LIMIT 20;

-- not_post_quantum: whose key exchanges are not post-quantum yet? Where none was made, or none was seen, there is no group.
SELECT service, role, tls.group AS key_exchange, count(*) AS handshakes, count(DISTINCT host) AS hosts
FROM handshake.connections
WHERE tls.outcome = 'completed' AND tls.group IS NOT NULL
    AND tls.group NOT LIKE '%MLKEM%' AND tls.group NOT LIKE '%Kyber%'
GROUP BY service, role, key_exchange
ORDER BY handshakes DESC
LIMIT 20;

-- port_exhaustion: where did a client find no local port?
SELECT host, netns, process.comm AS program, remote.addr AS peer, remote.port AS port, count(*) AS failures,
    min(time) AS first, max(time) AS last
FROM handshake.connections
WHERE open.outcome = 'no_local_port'
GROUP BY host, netns, program, peer, port
ORDER BY failures DESC
LIMIT 20;

-- resets_by_peer: whose connections does the other end reset?
SELECT service, role,
    count(*) FILTER (WHERE close.style = 'reset_received') AS resets,
    count(*) AS connections,
    100.0 * count(*) FILTER (WHERE close.style = 'reset_received') / count(*) AS percent
FROM handshake.connections
WHERE close.style IS NOT NULL
GROUP BY service, role
HAVING count(*) FILTER (WHERE close.style = 'reset_received') > 0
ORDER BY resets DESC
LIMIT 20;

-- lost_syns: on the way to which networks are SYNs lost, and what does it cost?
SELECT network, count(*) AS openings,
    sum(open.syn_retransmits) AS retransmits,
    100.0 * count(*) FILTER (WHERE open.syn_retransmits > 0) / count(*) AS percent,
    p99(open.duration_us) / 1000 AS p99_ms
FROM handshake.connections
WHERE role = 'client' AND open.syn_retransmits IS NOT NULL
GROUP BY network
HAVING sum(open.syn_retransmits) > 0
ORDER BY retransmits DESC
LIMIT 20;

-- slow_closers: which programs are slow to close once the other end has closed?
SELECT service, role,
    CASE close.initiator WHEN 'local' THEN 'the peer' ELSE coalesce(process.comm, 'unknown') END AS slow_program,
    count(*) AS closings,
    p50(close.app_wait_us) / 1000 AS p50_ms,
    p99(close.app_wait_us) / 1000 AS p99_ms
FROM handshake.connections
WHERE close.app_wait_us IS NOT NULL
GROUP BY service, role, slow_program
HAVING p99(close.app_wait_us) > 100000
ORDER BY p99_ms DESC
LIMIT 20;

-- tls_failures: why do TLS handshakes fail?
SELECT service, role, tls.outcome AS outcome, tls.alert AS alert, tls.alert_from AS alert_from, tls.error AS error,
    count(*) AS handshakes, count(DISTINCT host) AS hosts
FROM handshake.connections
WHERE tls.outcome IN ('failed', 'abandoned')
GROUP BY service, role, outcome, alert, alert_from, error
ORDER BY handshakes DESC
LIMIT 20;

-- accept_wait: whose connections wait for accept(), or find the accept queue full?
SELECT host, service, role, count(*) AS connections,
    p99(open.accept_wait_us) / 1000 AS p99_accept_wait_ms,
    count(*) FILTER (WHERE open.listener.accept_queue > open.listener.accept_queue_limit) AS met_a_full_queue
FROM handshake.connections
WHERE open.accept_wait_us IS NOT NULL OR open.listener.accept_queue IS NOT NULL
GROUP BY host, service, role
HAVING p99(open.accept_wait_us) > 10000
    OR count(*) FILTER (WHERE open.listener.accept_queue > open.listener.accept_queue_limit) > 0
ORDER BY connections DESC
LIMIT 20;
