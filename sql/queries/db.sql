-- The database itself.

-- name: ping :exec
SELECT;

-- name: act_for :exec
-- The tenant whose rows this session sees from now on.
SELECT FROM set_config('consent.log_id', $1, false);
