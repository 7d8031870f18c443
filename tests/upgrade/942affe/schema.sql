--
-- PostgreSQL database dump
--


-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: announce_event(text, text, jsonb); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.announce_event(project text, kind text, payload jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE event text := 'evt_' || replace(gen_random_uuid()::text, '-', '');
BEGIN
  INSERT INTO webhook_deliveries (id, project_id, endpoint_id, event_id, event_type, data, next_attempt_at)
  SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), project, e.id, event, kind, payload, clock_timestamp()
  FROM webhook_endpoints e
  WHERE e.project_id = project AND e.enabled AND jsonb_exists(e.event_types, kind);
END $$;


--
-- Name: announce_failed_job(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.announce_failed_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  PERFORM announce_to_operator('operator.job_failed', jsonb_build_object(
    'id', new.id, 'project_id', new.project_id, 'code', new.error_code, 'message', new.error_message));
  RETURN NULL;
END $$;


--
-- Name: announce_job(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.announce_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  PERFORM announce_event(new.project_id, 'fine_tuning.job.' || new.state, jsonb_build_object('id', new.id));
  RETURN NULL;
END $$;


--
-- Name: announce_to_operator(text, jsonb); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.announce_to_operator(kind text, payload jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
  INSERT INTO webhook_deliveries (id, endpoint_id, event_id, event_type, data, next_attempt_at)
  SELECT 'whd_' || replace(gen_random_uuid()::text, '-', ''), e.id,
    'evt_' || replace(gen_random_uuid()::text, '-', ''), kind, payload, clock_timestamp()
  FROM webhook_endpoints e WHERE e.project_id IS NULL AND e.enabled;
END $$;


--
-- Name: count_job_version(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.count_job_version() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
  seen jobs := new;
BEGIN
  seen.lease_owner := old.lease_owner;
  seen.lease_expires_at := old.lease_expires_at;
  seen.run_after := old.run_after;
  seen.crash_streak := old.crash_streak;
  seen.version := old.version;
  new.version := old.version + (seen IS DISTINCT FROM old)::int;
  RETURN new;
END $$;


--
-- Name: end_evaluation_attempt(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.end_evaluation_attempt() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  IF old.lease_owner IS NOT NULL AND (new.lease_owner IS NULL OR new.attempt <> old.attempt) THEN
    UPDATE evaluation_attempts SET ended_at = clock_timestamp()
    WHERE evaluation_id = old.id AND attempt = old.attempt AND ended_at IS NULL;
  END IF;
  RETURN NULL;
END $$;


--
-- Name: guard_job(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.guard_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  IF new.state <> old.state AND (old.state, new.state) NOT IN (
    ('validating_files', 'queued'), ('validating_files', 'failed'), ('validating_files', 'cancelled'),
    ('queued', 'running'), ('queued', 'paused'), ('queued', 'failed'), ('queued', 'cancelled'),
    ('running', 'queued'), ('running', 'paused'), ('running', 'succeeded'), ('running', 'failed'),
    ('running', 'cancelled'),
    ('paused', 'queued'), ('paused', 'cancelled')
  ) THEN
    RAISE EXCEPTION 'job %: % cannot become %', old.id, old.state, new.state USING ERRCODE = 'check_violation';
  END IF;
  IF new.attempt < old.attempt OR new.event_seq < old.event_seq OR new.train_attempts < old.train_attempts THEN
    RAISE EXCEPTION 'job %: attempt and event numbers never go down', old.id USING ERRCODE = 'check_violation';
  END IF;
  IF new.spec <> old.spec OR new.project_id <> old.project_id OR new.training_file_id <> old.training_file_id THEN
    RAISE EXCEPTION 'job %: what was asked for never changes', old.id USING ERRCODE = 'check_violation';
  END IF;
  IF new.state = 'succeeded' AND old.state <> 'succeeded' AND new.desired <> 'run' THEN
    RAISE EXCEPTION 'job %: succeeded, although % was asked for', old.id, new.desired USING ERRCODE = 'check_violation';
  END IF;
  RETURN new;
END $$;


--
-- Name: notify_job(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.notify_job() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
DECLARE
  moved boolean := new.state = 'queued';
BEGIN
  IF TG_OP = 'UPDATE' THEN
    moved := (old.state = 'queued' OR new.state = 'queued')
      AND (old.state, old.desired, old.priority) IS DISTINCT FROM (new.state, new.desired, new.priority);
  END IF;
  PERFORM pg_notify(
    'tunery_jobs', concat_ws(' ', new.project_id, new.id, new.event_seq, CASE WHEN moved THEN 'queue' END)
  );
  RETURN NULL;
END $$;


--
-- Name: refuse_change_of_audit_log(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.refuse_change_of_audit_log() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: api_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.api_keys (
    id text NOT NULL,
    project_id text NOT NULL,
    name text NOT NULL,
    secret_sha256 text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    seq bigint NOT NULL,
    redacted text DEFAULT ''::text NOT NULL,
    previous_secret_sha256 text,
    previous_expires_at timestamp with time zone,
    rotated_at timestamp with time zone,
    expires_at timestamp with time zone,
    scopes jsonb DEFAULT '["all"]'::jsonb NOT NULL,
    CONSTRAINT ck_api_keys_previous_differs CHECK ((previous_secret_sha256 <> secret_sha256)),
    CONSTRAINT ck_api_keys_previous_whole CHECK (((previous_secret_sha256 IS NULL) = (previous_expires_at IS NULL))),
    CONSTRAINT ck_api_keys_scopes CHECK (((jsonb_typeof(scopes) = 'array'::text) AND (scopes <> '[]'::jsonb)))
);


--
-- Name: api_keys_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.api_keys ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.api_keys_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: attempts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.attempts (
    job_id text NOT NULL,
    attempt bigint NOT NULL,
    project_id text NOT NULL,
    kind text NOT NULL,
    worker text NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    reason text,
    gpus bigint DEFAULT '1'::bigint NOT NULL,
    is_counted boolean DEFAULT false NOT NULL,
    gpu_uuids jsonb,
    budget_bytes bigint,
    gpu_share double precision DEFAULT '1'::double precision NOT NULL,
    CONSTRAINT ck_attempts_gpu_share CHECK (((gpu_share > (0)::double precision) AND (gpu_share <= (1)::double precision))),
    CONSTRAINT ck_attempts_gpus CHECK ((gpus >= 1)),
    CONSTRAINT ck_attempts_kind CHECK ((kind = ANY (ARRAY['validate'::text, 'train'::text]))),
    CONSTRAINT ck_attempts_reservation_whole CHECK (((gpu_uuids IS NULL) = (budget_bytes IS NULL)))
);


--
-- Name: audit_log; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit_log (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    action text NOT NULL,
    actor_type text NOT NULL,
    actor_id text NOT NULL,
    object_ids jsonb NOT NULL,
    address text,
    request_id text,
    CONSTRAINT ck_audit_log_actor_type CHECK ((actor_type = ANY (ARRAY['api_key'::text, 'operator'::text, 'system'::text])))
);


--
-- Name: audit_log_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.audit_log ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.audit_log_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: base_model_registrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.base_model_registrations (
    id text NOT NULL,
    seq bigint NOT NULL,
    name text NOT NULL,
    directory text NOT NULL,
    learning_rate double precision,
    license text,
    source text,
    revision text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    state text DEFAULT 'queued'::text NOT NULL,
    attempt bigint DEFAULT '0'::bigint NOT NULL,
    crash_streak bigint DEFAULT '0'::bigint NOT NULL,
    run_after timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    lease_owner text,
    lease_expires_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    notes jsonb DEFAULT '[]'::jsonb NOT NULL,
    error_code text,
    error_message text,
    is_pull boolean DEFAULT false NOT NULL,
    CONSTRAINT ck_base_model_registrations_error CHECK (((state = 'failed'::text) = (error_code IS NOT NULL))),
    CONSTRAINT ck_base_model_registrations_finished_at CHECK (((state = ANY (ARRAY['failed'::text, 'succeeded'::text])) = (finished_at IS NOT NULL))),
    CONSTRAINT ck_base_model_registrations_lease_whole CHECK (((lease_owner IS NULL) = (lease_expires_at IS NULL))),
    CONSTRAINT ck_base_model_registrations_pull_has_source CHECK (((source IS NOT NULL) OR (NOT is_pull))),
    CONSTRAINT ck_base_model_registrations_running_has_lease CHECK (((state = 'running'::text) = (lease_owner IS NOT NULL))),
    CONSTRAINT ck_base_model_registrations_state CHECK ((state = ANY (ARRAY['failed'::text, 'queued'::text, 'running'::text, 'succeeded'::text])))
);


--
-- Name: base_model_registrations_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.base_model_registrations ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.base_model_registrations_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: base_models; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.base_models (
    name text NOT NULL,
    project_id text,
    directory text NOT NULL,
    manifest_sha256 text NOT NULL,
    files jsonb NOT NULL,
    entry jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    counted_activation_bytes jsonb
);


--
-- Name: checkpoint_permissions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.checkpoint_permissions (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    model_id text NOT NULL,
    grantee_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ck_checkpoint_permissions_grantee_is_another CHECK ((project_id <> grantee_id))
);


--
-- Name: checkpoint_permissions_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.checkpoint_permissions ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.checkpoint_permissions_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: checkpoints; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.checkpoints (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    job_id text NOT NULL,
    attempt bigint NOT NULL,
    step_number bigint NOT NULL,
    name text NOT NULL,
    metrics jsonb NOT NULL,
    manifest jsonb NOT NULL,
    file_ids jsonb NOT NULL,
    archive_file_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    retired_at timestamp with time zone
);


--
-- Name: checkpoints_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.checkpoints ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.checkpoints_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: deliveries; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.deliveries (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    target_id text NOT NULL,
    job_id text NOT NULL,
    checkpoint_id text NOT NULL,
    model text NOT NULL,
    served_model text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    attempt bigint DEFAULT '0'::bigint NOT NULL,
    tries bigint DEFAULT '0'::bigint NOT NULL,
    next_attempt_at timestamp with time zone,
    leased_until timestamp with time zone,
    error text,
    location jsonb,
    served_check jsonb,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    delivered_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ck_deliveries_ended CHECK (((state = ANY (ARRAY['failed'::text, 'withdrawn'::text])) <= (next_attempt_at IS NULL))),
    CONSTRAINT ck_deliveries_next_attempt_at CHECK (((state = ANY (ARRAY['pending'::text, 'withdrawing'::text])) <= (next_attempt_at IS NOT NULL))),
    CONSTRAINT ck_deliveries_state CHECK ((state = ANY (ARRAY['delivered'::text, 'failed'::text, 'pending'::text, 'withdrawing'::text, 'withdrawn'::text]))),
    CONSTRAINT ck_deliveries_tries CHECK (((tries >= 0) AND (tries <= attempt)))
);


--
-- Name: deliveries_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.deliveries ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.deliveries_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: delivery_targets; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.delivery_targets (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    name text NOT NULL,
    kind text NOT NULL,
    destination jsonb NOT NULL,
    credentials text,
    credential_names jsonb DEFAULT '[]'::jsonb NOT NULL,
    served_model text,
    is_default boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT ck_delivery_targets_deleted_without_credentials CHECK (((deleted_at IS NOT NULL) <= (credentials IS NULL))),
    CONSTRAINT ck_delivery_targets_kind CHECK ((kind = ANY (ARRAY['directory'::text, 'huggingface'::text, 's3'::text, 'sglang'::text, 'vllm'::text])))
);


--
-- Name: delivery_targets_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.delivery_targets ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.delivery_targets_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: evaluation_attempts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.evaluation_attempts (
    evaluation_id text NOT NULL,
    attempt bigint NOT NULL,
    project_id text NOT NULL,
    worker text NOT NULL,
    gpus double precision NOT NULL,
    is_counted boolean DEFAULT false NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT ck_evaluation_attempts_gpus CHECK ((gpus > (0)::double precision))
);


--
-- Name: evaluations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.evaluations (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    job_id text NOT NULL,
    checkpoint_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    file_id text NOT NULL,
    settings jsonb NOT NULL,
    model text NOT NULL,
    base_model text NOT NULL,
    step_number bigint NOT NULL,
    adapter_file_ids jsonb NOT NULL,
    plan jsonb NOT NULL,
    state text DEFAULT 'queued'::text NOT NULL,
    progress jsonb,
    attempt bigint DEFAULT '0'::bigint NOT NULL,
    crash_streak bigint DEFAULT '0'::bigint NOT NULL,
    run_after timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    lease_owner text,
    lease_expires_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    "precision" text,
    summary jsonb,
    results_file_id text,
    report_file_id text,
    error_code text,
    error_message text,
    gpu_uuids jsonb,
    budget_bytes bigint,
    worker text,
    CONSTRAINT ck_evaluations_error CHECK (((state = 'failed'::text) = (error_code IS NOT NULL))),
    CONSTRAINT ck_evaluations_finished_at CHECK (((state = ANY (ARRAY['cancelled'::text, 'failed'::text, 'succeeded'::text])) = (finished_at IS NOT NULL))),
    CONSTRAINT ck_evaluations_lease_whole CHECK (((lease_owner IS NULL) = (lease_expires_at IS NULL))),
    CONSTRAINT ck_evaluations_reservation_whole CHECK (((gpu_uuids IS NULL) = (budget_bytes IS NULL))),
    CONSTRAINT ck_evaluations_running_has_lease CHECK (((state = 'running'::text) = (lease_owner IS NOT NULL))),
    CONSTRAINT ck_evaluations_state CHECK ((state = ANY (ARRAY['cancelled'::text, 'failed'::text, 'queued'::text, 'running'::text, 'succeeded'::text]))),
    CONSTRAINT ck_evaluations_summary CHECK (((state = 'succeeded'::text) = (summary IS NOT NULL)))
);


--
-- Name: evaluations_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.evaluations ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.evaluations_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: exports; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.exports (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    job_id text NOT NULL,
    checkpoint_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    type text NOT NULL,
    model text NOT NULL,
    base_model text NOT NULL,
    step_number bigint NOT NULL,
    adapter_file_ids jsonb NOT NULL,
    expected_bytes bigint NOT NULL,
    state text DEFAULT 'queued'::text NOT NULL,
    attempt bigint DEFAULT '0'::bigint NOT NULL,
    crash_streak bigint DEFAULT '0'::bigint NOT NULL,
    run_after timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    lease_owner text,
    lease_expires_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    deleted_at timestamp with time zone,
    file_ids jsonb DEFAULT '[]'::jsonb NOT NULL,
    size_bytes bigint,
    manifest jsonb,
    error_code text,
    error_message text,
    storage_full_since timestamp with time zone,
    quantization text,
    CONSTRAINT ck_exports_cancelled_is_deleted CHECK (((state = 'cancelled'::text) <= (deleted_at IS NOT NULL))),
    CONSTRAINT ck_exports_deleted_is_finished CHECK (((deleted_at IS NOT NULL) <= (finished_at IS NOT NULL))),
    CONSTRAINT ck_exports_error CHECK (((state = 'failed'::text) = (error_code IS NOT NULL))),
    CONSTRAINT ck_exports_finished_at CHECK (((state = ANY (ARRAY['cancelled'::text, 'failed'::text, 'succeeded'::text])) = (finished_at IS NOT NULL))),
    CONSTRAINT ck_exports_lease_whole CHECK (((lease_owner IS NULL) = (lease_expires_at IS NULL))),
    CONSTRAINT ck_exports_manifest CHECK (((state = 'succeeded'::text) = (manifest IS NOT NULL))),
    CONSTRAINT ck_exports_quantization CHECK (((type = 'gguf'::text) = (quantization IS NOT NULL))),
    CONSTRAINT ck_exports_running_has_lease CHECK (((state = 'running'::text) = (lease_owner IS NOT NULL))),
    CONSTRAINT ck_exports_state CHECK ((state = ANY (ARRAY['cancelled'::text, 'failed'::text, 'queued'::text, 'running'::text, 'succeeded'::text]))),
    CONSTRAINT ck_exports_type CHECK ((type = ANY (ARRAY['gguf'::text, 'gguf_adapter'::text, 'merged'::text])))
);


--
-- Name: exports_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.exports ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.exports_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: files; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.files (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    job_id text,
    purpose text NOT NULL,
    filename text NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    storage_key text NOT NULL,
    line_count bigint,
    status text DEFAULT 'processed'::text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone,
    deleted_at timestamp with time zone,
    purged_at timestamp with time zone,
    archive_members jsonb,
    origin jsonb,
    CONSTRAINT ck_files_archive_has_no_object CHECK (((archive_members IS NULL) OR (purged_at IS NOT NULL))),
    CONSTRAINT ck_files_bytes CHECK ((bytes >= 0))
);


--
-- Name: files_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.files ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.files_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: idempotency_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency_keys (
    project_id text NOT NULL,
    key text NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    fingerprint text NOT NULL,
    status bigint,
    answer text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ck_idempotency_keys_answer_whole CHECK (((status IS NULL) = (answer IS NULL))),
    CONSTRAINT ck_idempotency_keys_status CHECK (((status >= 200) AND (status <= 299)))
);


--
-- Name: job_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_events (
    job_id text NOT NULL,
    seq bigint NOT NULL,
    id text NOT NULL,
    project_id text NOT NULL,
    attempt bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    level text NOT NULL,
    type text NOT NULL,
    message text NOT NULL,
    data jsonb NOT NULL,
    CONSTRAINT ck_job_events_level CHECK ((level = ANY (ARRAY['info'::text, 'warn'::text, 'error'::text]))),
    CONSTRAINT ck_job_events_type CHECK ((type = ANY (ARRAY['message'::text, 'metrics'::text])))
);


--
-- Name: job_logs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.job_logs (
    job_id text NOT NULL,
    attempt bigint NOT NULL,
    project_id text NOT NULL,
    text text NOT NULL,
    cut_bytes bigint NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ck_job_logs_bounded CHECK ((octet_length(text) <= 65536)),
    CONSTRAINT ck_job_logs_cut_bytes CHECK ((cut_bytes >= 0))
);


--
-- Name: jobs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.jobs (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    base_model text NOT NULL,
    training_file_id text NOT NULL,
    validation_file_id text,
    spec jsonb NOT NULL,
    suffix text,
    metadata jsonb,
    priority bigint DEFAULT '0'::bigint NOT NULL,
    state text DEFAULT 'validating_files'::text NOT NULL,
    desired text DEFAULT 'run'::text NOT NULL,
    phase text,
    attempt bigint DEFAULT '0'::bigint NOT NULL,
    train_attempts bigint DEFAULT '0'::bigint NOT NULL,
    crash_streak bigint DEFAULT '0'::bigint NOT NULL,
    run_after timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    lease_owner text,
    lease_expires_at timestamp with time zone,
    event_seq bigint DEFAULT '0'::bigint NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    progress jsonb,
    trained_tokens bigint,
    fine_tuned_model text,
    result_file_ids jsonb DEFAULT '[]'::jsonb NOT NULL,
    adapter_sha256 text,
    adapter_bytes bigint,
    adapter_archive_file_id text,
    reason text,
    error_code text,
    error_message text,
    error_param text,
    version bigint DEFAULT '1'::bigint NOT NULL,
    is_urgent boolean DEFAULT false NOT NULL,
    worker_labels jsonb DEFAULT '[]'::jsonb NOT NULL,
    needed_cpu_bytes bigint,
    needed_cuda_bytes bigint,
    planned_seconds double precision,
    yield_requested_at timestamp with time zone,
    times_yielded bigint DEFAULT '0'::bigint NOT NULL,
    cloned_from text,
    warnings jsonb DEFAULT '[]'::jsonb NOT NULL,
    storage_full_since timestamp with time zone,
    request_id text,
    traceparent text,
    evaluation jsonb,
    deliver_to jsonb DEFAULT '[]'::jsonb NOT NULL,
    request jsonb,
    CONSTRAINT ck_jobs_adapter CHECK (((state = 'succeeded'::text) = (adapter_sha256 IS NOT NULL))),
    CONSTRAINT ck_jobs_desired CHECK ((desired = ANY (ARRAY['cancel'::text, 'pause'::text, 'run'::text]))),
    CONSTRAINT ck_jobs_error CHECK (((state = 'failed'::text) = (error_code IS NOT NULL))),
    CONSTRAINT ck_jobs_finished_at CHECK (((state = ANY (ARRAY['cancelled'::text, 'failed'::text, 'succeeded'::text])) = (finished_at IS NOT NULL))),
    CONSTRAINT ck_jobs_lease_only_while_active CHECK (((lease_owner IS NOT NULL) <= (state = ANY (ARRAY['running'::text, 'validating_files'::text])))),
    CONSTRAINT ck_jobs_lease_whole CHECK (((lease_owner IS NULL) = (lease_expires_at IS NULL))),
    CONSTRAINT ck_jobs_priority CHECK (((priority >= '-100'::integer) AND (priority <= 100))),
    CONSTRAINT ck_jobs_running_has_lease CHECK (((state = 'running'::text) <= (lease_owner IS NOT NULL))),
    CONSTRAINT ck_jobs_state CHECK ((state = ANY (ARRAY['cancelled'::text, 'failed'::text, 'paused'::text, 'queued'::text, 'running'::text, 'succeeded'::text, 'validating_files'::text]))),
    CONSTRAINT ck_jobs_yield_only_while_running CHECK (((yield_requested_at IS NOT NULL) <= (state = 'running'::text)))
);


--
-- Name: jobs_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.jobs ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.jobs_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: measurements; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.measurements (
    job_id text NOT NULL,
    attempt bigint NOT NULL,
    project_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    device_kind text NOT NULL,
    device_name text NOT NULL,
    base_manifest_sha256 text NOT NULL,
    quantization text NOT NULL,
    method text NOT NULL,
    recompute text NOT NULL,
    cache_weights boolean NOT NULL,
    formula_loaded_bytes bigint NOT NULL,
    formula_working_bytes bigint NOT NULL,
    predicted_peak_bytes bigint NOT NULL,
    predicted_seconds double precision NOT NULL,
    loaded_bytes bigint NOT NULL,
    peak_bytes bigint NOT NULL,
    seconds double precision,
    step_seconds double precision,
    step_tokens bigint,
    step_flop double precision,
    probe_seconds double precision,
    validation_seconds double precision,
    others_share double precision
);


--
-- Name: model_aliases; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.model_aliases (
    name text NOT NULL,
    base_model text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: project_usage; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.project_usage (
    project_id text NOT NULL,
    gpu_seconds double precision DEFAULT '0'::double precision NOT NULL,
    counted_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    validation_turn_at timestamp with time zone,
    CONSTRAINT ck_project_usage_gpu_seconds CHECK ((gpu_seconds >= (0)::double precision))
);


--
-- Name: projects; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.projects (
    id text NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    seq bigint NOT NULL,
    archived_at timestamp with time zone,
    max_stored_bytes bigint,
    max_queued_jobs bigint,
    max_running_jobs bigint,
    max_gpu_seconds_per_month bigint,
    max_requests_per_second bigint,
    share_weight double precision DEFAULT 1 NOT NULL,
    may_be_urgent boolean DEFAULT false NOT NULL,
    CONSTRAINT ck_projects_limits CHECK (((max_stored_bytes >= 0) AND (max_queued_jobs >= 0) AND (max_running_jobs >= 0) AND (max_gpu_seconds_per_month >= 0) AND (max_requests_per_second >= 1))),
    CONSTRAINT ck_projects_share_weight CHECK (((share_weight > (0)::double precision) AND (share_weight < 'Infinity'::double precision)))
);


--
-- Name: projects_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.projects ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.projects_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: queue_places; Type: TABLE; Schema: public; Owner: -
--

CREATE UNLOGGED TABLE public.queue_places (
    job_id text NOT NULL,
    project_id text NOT NULL,
    "position" bigint NOT NULL,
    expected_start_at timestamp with time zone,
    waiting_for text,
    waiting_since timestamp with time zone,
    is_told boolean DEFAULT false NOT NULL,
    CONSTRAINT ck_queue_places_position CHECK (("position" >= 1)),
    CONSTRAINT ck_queue_places_waiting_whole CHECK (((waiting_for IS NULL) = (waiting_since IS NULL)))
);


--
-- Name: retention_rules; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.retention_rules (
    project_id text NOT NULL,
    kind text NOT NULL,
    days bigint NOT NULL,
    CONSTRAINT ck_retention_rules_days CHECK (((days >= 1) AND (days <= 36500))),
    CONSTRAINT ck_retention_rules_kind CHECK ((kind = ANY (ARRAY['files'::text, 'checkpoints'::text, 'logs'::text, 'events'::text, 'exports'::text])))
);


--
-- Name: retired_api_keys; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.retired_api_keys (
    secret_sha256 text NOT NULL,
    key_id text NOT NULL
);


--
-- Name: served_references; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.served_references (
    checkpoint_id text NOT NULL,
    project_id text NOT NULL,
    reference jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: service_state; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.service_state (
    name text NOT NULL,
    data jsonb DEFAULT '{}'::jsonb NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: snapshots; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.snapshots (
    id text NOT NULL,
    project_id text NOT NULL,
    job_id text NOT NULL,
    attempt bigint NOT NULL,
    step bigint NOT NULL,
    manifest_sha256 text NOT NULL,
    storage_keys jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: tuned_models; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tuned_models (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text NOT NULL,
    job_id text NOT NULL,
    checkpoint_id text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    deleted_at timestamp with time zone
);


--
-- Name: tuned_models_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.tuned_models ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.tuned_models_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: upload_parts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.upload_parts (
    id text NOT NULL,
    project_id text NOT NULL,
    upload_id text NOT NULL,
    start bigint,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    storage_key text NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT ck_upload_parts_bytes CHECK ((bytes >= 0)),
    CONSTRAINT ck_upload_parts_start CHECK ((start >= 0))
);


--
-- Name: uploads; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.uploads (
    id text NOT NULL,
    project_id text NOT NULL,
    filename text NOT NULL,
    purpose text NOT NULL,
    mime_type text NOT NULL,
    bytes bigint NOT NULL,
    file_expires_after_seconds bigint,
    status text DEFAULT 'pending'::text NOT NULL,
    writer bigint DEFAULT 0 NOT NULL,
    part_ids jsonb,
    file_id text,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT ck_uploads_bytes CHECK ((bytes >= 0)),
    CONSTRAINT ck_uploads_completed CHECK (((status = 'completed'::text) = (file_id IS NOT NULL))),
    CONSTRAINT ck_uploads_status CHECK ((status = ANY (ARRAY['cancelled'::text, 'completed'::text, 'expired'::text, 'pending'::text])))
);


--
-- Name: webhook_attempts; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.webhook_attempts (
    delivery_id text NOT NULL,
    attempt bigint NOT NULL,
    project_id text,
    finished_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    duration_ms bigint NOT NULL,
    status_code bigint,
    error text,
    response text,
    CONSTRAINT ck_webhook_attempts_duration_ms CHECK ((duration_ms >= 0)),
    CONSTRAINT ck_webhook_attempts_outcome CHECK (((status_code IS NOT NULL) OR (error IS NOT NULL)))
);


--
-- Name: webhook_deliveries; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.webhook_deliveries (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text,
    endpoint_id text NOT NULL,
    event_id text NOT NULL,
    event_type text NOT NULL,
    data jsonb NOT NULL,
    is_test boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    attempt bigint DEFAULT '0'::bigint NOT NULL,
    tries bigint DEFAULT '0'::bigint NOT NULL,
    next_attempt_at timestamp with time zone,
    leased_until timestamp with time zone,
    finished_at timestamp with time zone,
    CONSTRAINT ck_webhook_deliveries_finished_at CHECK (((state = 'pending'::text) = (finished_at IS NULL))),
    CONSTRAINT ck_webhook_deliveries_leased_while_pending CHECK (((leased_until IS NOT NULL) <= (state = 'pending'::text))),
    CONSTRAINT ck_webhook_deliveries_next_attempt_at CHECK (((state = 'pending'::text) = (next_attempt_at IS NOT NULL))),
    CONSTRAINT ck_webhook_deliveries_state CHECK ((state = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text]))),
    CONSTRAINT ck_webhook_deliveries_tries CHECK (((tries >= 0) AND (tries <= attempt)))
);


--
-- Name: webhook_deliveries_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.webhook_deliveries ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.webhook_deliveries_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: webhook_endpoints; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.webhook_endpoints (
    id text NOT NULL,
    seq bigint NOT NULL,
    project_id text,
    name text NOT NULL,
    url text NOT NULL,
    event_types jsonb NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    disabled_at timestamp with time zone,
    disabled_reason text,
    failing_since timestamp with time zone,
    secret text NOT NULL,
    previous_secret text,
    previous_secret_expires_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    updated_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    secret_hint text,
    CONSTRAINT ck_webhook_endpoints_disabled_at CHECK ((enabled = (disabled_at IS NULL))),
    CONSTRAINT ck_webhook_endpoints_disabled_reason CHECK ((enabled = (disabled_reason IS NULL))),
    CONSTRAINT ck_webhook_endpoints_event_types CHECK ((jsonb_array_length(event_types) > 0)),
    CONSTRAINT ck_webhook_endpoints_previous_secret CHECK (((previous_secret IS NULL) = (previous_secret_expires_at IS NULL))),
    CONSTRAINT ck_webhook_endpoints_secret CHECK (((secret ~~ 'whsec_%'::text) OR (secret ~~ 'gAAAA%'::text)))
);


--
-- Name: webhook_endpoints_seq_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.webhook_endpoints ALTER COLUMN seq ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.webhook_endpoints_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: workers; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.workers (
    id text NOT NULL,
    project_id text,
    queue text NOT NULL,
    hostname text NOT NULL,
    pid bigint NOT NULL,
    about jsonb NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    lost_at timestamp with time zone
);


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: api_keys pk_api_keys; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT pk_api_keys PRIMARY KEY (id);


--
-- Name: attempts pk_attempts; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT pk_attempts PRIMARY KEY (job_id, attempt);


--
-- Name: audit_log pk_audit_log; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT pk_audit_log PRIMARY KEY (id);


--
-- Name: base_model_registrations pk_base_model_registrations; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.base_model_registrations
    ADD CONSTRAINT pk_base_model_registrations PRIMARY KEY (id);


--
-- Name: base_models pk_base_models; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.base_models
    ADD CONSTRAINT pk_base_models PRIMARY KEY (name);


--
-- Name: checkpoint_permissions pk_checkpoint_permissions; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoint_permissions
    ADD CONSTRAINT pk_checkpoint_permissions PRIMARY KEY (id);


--
-- Name: checkpoints pk_checkpoints; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT pk_checkpoints PRIMARY KEY (id);


--
-- Name: deliveries pk_deliveries; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT pk_deliveries PRIMARY KEY (id);


--
-- Name: delivery_targets pk_delivery_targets; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.delivery_targets
    ADD CONSTRAINT pk_delivery_targets PRIMARY KEY (id);


--
-- Name: evaluation_attempts pk_evaluation_attempts; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluation_attempts
    ADD CONSTRAINT pk_evaluation_attempts PRIMARY KEY (evaluation_id, attempt);


--
-- Name: evaluations pk_evaluations; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT pk_evaluations PRIMARY KEY (id);


--
-- Name: exports pk_exports; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.exports
    ADD CONSTRAINT pk_exports PRIMARY KEY (id);


--
-- Name: files pk_files; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.files
    ADD CONSTRAINT pk_files PRIMARY KEY (id);


--
-- Name: idempotency_keys pk_idempotency_keys; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT pk_idempotency_keys PRIMARY KEY (project_id, key);


--
-- Name: job_events pk_job_events; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events
    ADD CONSTRAINT pk_job_events PRIMARY KEY (job_id, seq);


--
-- Name: job_logs pk_job_logs; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_logs
    ADD CONSTRAINT pk_job_logs PRIMARY KEY (job_id, attempt);


--
-- Name: jobs pk_jobs; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (id);


--
-- Name: measurements pk_measurements; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT pk_measurements PRIMARY KEY (job_id, attempt);


--
-- Name: model_aliases pk_model_aliases; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.model_aliases
    ADD CONSTRAINT pk_model_aliases PRIMARY KEY (name);


--
-- Name: project_usage pk_project_usage; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.project_usage
    ADD CONSTRAINT pk_project_usage PRIMARY KEY (project_id);


--
-- Name: projects pk_projects; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT pk_projects PRIMARY KEY (id);


--
-- Name: queue_places pk_queue_places; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.queue_places
    ADD CONSTRAINT pk_queue_places PRIMARY KEY (job_id);


--
-- Name: retention_rules pk_retention_rules; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.retention_rules
    ADD CONSTRAINT pk_retention_rules PRIMARY KEY (project_id, kind);


--
-- Name: retired_api_keys pk_retired_api_keys; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.retired_api_keys
    ADD CONSTRAINT pk_retired_api_keys PRIMARY KEY (secret_sha256);


--
-- Name: served_references pk_served_references; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.served_references
    ADD CONSTRAINT pk_served_references PRIMARY KEY (checkpoint_id);


--
-- Name: service_state pk_service_state; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.service_state
    ADD CONSTRAINT pk_service_state PRIMARY KEY (name);


--
-- Name: snapshots pk_snapshots; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT pk_snapshots PRIMARY KEY (id);


--
-- Name: tuned_models pk_tuned_models; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tuned_models
    ADD CONSTRAINT pk_tuned_models PRIMARY KEY (id);


--
-- Name: upload_parts pk_upload_parts; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.upload_parts
    ADD CONSTRAINT pk_upload_parts PRIMARY KEY (id);


--
-- Name: uploads pk_uploads; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT pk_uploads PRIMARY KEY (id);


--
-- Name: webhook_attempts pk_webhook_attempts; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_attempts
    ADD CONSTRAINT pk_webhook_attempts PRIMARY KEY (delivery_id, attempt);


--
-- Name: webhook_deliveries pk_webhook_deliveries; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT pk_webhook_deliveries PRIMARY KEY (id);


--
-- Name: webhook_endpoints pk_webhook_endpoints; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_endpoints
    ADD CONSTRAINT pk_webhook_endpoints PRIMARY KEY (id);


--
-- Name: workers pk_workers; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workers
    ADD CONSTRAINT pk_workers PRIMARY KEY (id);


--
-- Name: api_keys uq_api_keys_previous_secret_sha256; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT uq_api_keys_previous_secret_sha256 UNIQUE (previous_secret_sha256);


--
-- Name: api_keys uq_api_keys_secret_sha256; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT uq_api_keys_secret_sha256 UNIQUE (secret_sha256);


--
-- Name: api_keys uq_api_keys_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT uq_api_keys_seq UNIQUE (seq);


--
-- Name: audit_log uq_audit_log_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT uq_audit_log_seq UNIQUE (seq);


--
-- Name: base_model_registrations uq_base_model_registrations_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.base_model_registrations
    ADD CONSTRAINT uq_base_model_registrations_seq UNIQUE (seq);


--
-- Name: checkpoint_permissions uq_checkpoint_permissions_model_id_grantee_id; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoint_permissions
    ADD CONSTRAINT uq_checkpoint_permissions_model_id_grantee_id UNIQUE (model_id, grantee_id);


--
-- Name: checkpoint_permissions uq_checkpoint_permissions_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoint_permissions
    ADD CONSTRAINT uq_checkpoint_permissions_seq UNIQUE (seq);


--
-- Name: checkpoints uq_checkpoints_job_id_step_number; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT uq_checkpoints_job_id_step_number UNIQUE (job_id, step_number);


--
-- Name: checkpoints uq_checkpoints_name; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT uq_checkpoints_name UNIQUE (name);


--
-- Name: checkpoints uq_checkpoints_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT uq_checkpoints_seq UNIQUE (seq);


--
-- Name: deliveries uq_deliveries_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT uq_deliveries_seq UNIQUE (seq);


--
-- Name: delivery_targets uq_delivery_targets_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.delivery_targets
    ADD CONSTRAINT uq_delivery_targets_seq UNIQUE (seq);


--
-- Name: evaluations uq_evaluations_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT uq_evaluations_seq UNIQUE (seq);


--
-- Name: exports uq_exports_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.exports
    ADD CONSTRAINT uq_exports_seq UNIQUE (seq);


--
-- Name: files uq_files_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.files
    ADD CONSTRAINT uq_files_seq UNIQUE (seq);


--
-- Name: job_events uq_job_events_id; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events
    ADD CONSTRAINT uq_job_events_id UNIQUE (id);


--
-- Name: jobs uq_jobs_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT uq_jobs_seq UNIQUE (seq);


--
-- Name: projects uq_projects_name; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT uq_projects_name UNIQUE (name);


--
-- Name: projects uq_projects_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.projects
    ADD CONSTRAINT uq_projects_seq UNIQUE (seq);


--
-- Name: snapshots uq_snapshots_job_id_attempt_step; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT uq_snapshots_job_id_attempt_step UNIQUE (job_id, attempt, step);


--
-- Name: tuned_models uq_tuned_models_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tuned_models
    ADD CONSTRAINT uq_tuned_models_seq UNIQUE (seq);


--
-- Name: upload_parts uq_upload_parts_storage_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.upload_parts
    ADD CONSTRAINT uq_upload_parts_storage_key UNIQUE (storage_key);


--
-- Name: webhook_deliveries uq_webhook_deliveries_endpoint_id_event_id; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT uq_webhook_deliveries_endpoint_id_event_id UNIQUE (endpoint_id, event_id);


--
-- Name: webhook_deliveries uq_webhook_deliveries_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT uq_webhook_deliveries_seq UNIQUE (seq);


--
-- Name: webhook_endpoints uq_webhook_endpoints_seq; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_endpoints
    ADD CONSTRAINT uq_webhook_endpoints_seq UNIQUE (seq);


--
-- Name: ix_api_keys_project_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_api_keys_project_id ON public.api_keys USING btree (project_id);


--
-- Name: ix_attempts_reserved; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_attempts_reserved ON public.attempts USING btree (ended_at) WHERE (budget_bytes IS NOT NULL);


--
-- Name: ix_attempts_uncounted; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_attempts_uncounted ON public.attempts USING btree (project_id) WHERE ((NOT is_counted) AND (kind = 'train'::text));


--
-- Name: ix_attempts_usage; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_attempts_usage ON public.attempts USING btree (project_id, ended_at) WHERE (kind = 'train'::text);


--
-- Name: ix_audit_log_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_audit_log_page ON public.audit_log USING btree (project_id, seq);


--
-- Name: ix_checkpoint_permissions_grantee_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_checkpoint_permissions_grantee_id ON public.checkpoint_permissions USING btree (grantee_id);


--
-- Name: ix_checkpoints_job_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_checkpoints_job_id ON public.checkpoints USING btree (job_id);


--
-- Name: ix_deliveries_checkpoint_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_deliveries_checkpoint_id ON public.deliveries USING btree (checkpoint_id);


--
-- Name: ix_deliveries_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_deliveries_due ON public.deliveries USING btree (target_id, next_attempt_at) WHERE (next_attempt_at IS NOT NULL);


--
-- Name: ix_deliveries_job; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_deliveries_job ON public.deliveries USING btree (job_id, seq);


--
-- Name: ix_deliveries_model; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_deliveries_model ON public.deliveries USING btree (model);


--
-- Name: ix_deliveries_served_model; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_deliveries_served_model ON public.deliveries USING btree (served_model);


--
-- Name: ix_delivery_targets_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_delivery_targets_page ON public.delivery_targets USING btree (project_id, seq);


--
-- Name: ix_evaluation_attempts_uncounted; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluation_attempts_uncounted ON public.evaluation_attempts USING btree (project_id) WHERE (NOT is_counted);


--
-- Name: ix_evaluation_attempts_usage; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluation_attempts_usage ON public.evaluation_attempts USING btree (project_id, ended_at);


--
-- Name: ix_evaluations_checkpoint_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_checkpoint_id ON public.evaluations USING btree (checkpoint_id);


--
-- Name: ix_evaluations_claim; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_claim ON public.evaluations USING btree (seq) WHERE (state = 'queued'::text);


--
-- Name: ix_evaluations_file_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_file_id ON public.evaluations USING btree (file_id);


--
-- Name: ix_evaluations_lease; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_lease ON public.evaluations USING btree (lease_expires_at) WHERE (lease_owner IS NOT NULL);


--
-- Name: ix_evaluations_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_page ON public.evaluations USING btree (job_id, seq);


--
-- Name: ix_evaluations_reserved; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_reserved ON public.evaluations USING btree (finished_at) WHERE (budget_bytes IS NOT NULL);


--
-- Name: ix_evaluations_unfinished; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_evaluations_unfinished ON public.evaluations USING btree (project_id) WHERE (state = ANY (ARRAY['queued'::text, 'running'::text]));


--
-- Name: ix_exports_checkpoint_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_exports_checkpoint_id ON public.exports USING btree (checkpoint_id);


--
-- Name: ix_exports_claim; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_exports_claim ON public.exports USING btree (seq) WHERE (state = 'queued'::text);


--
-- Name: ix_exports_lease; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_exports_lease ON public.exports USING btree (lease_expires_at) WHERE (lease_owner IS NOT NULL);


--
-- Name: ix_exports_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_exports_page ON public.exports USING btree (job_id, seq);


--
-- Name: ix_files_job_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_files_job_id ON public.files USING btree (job_id);


--
-- Name: ix_files_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_files_page ON public.files USING btree (project_id, seq) WHERE (deleted_at IS NULL);


--
-- Name: ix_files_storage_key; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_files_storage_key ON public.files USING btree (storage_key);


--
-- Name: ix_files_stored; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_files_stored ON public.files USING btree (project_id) INCLUDE (bytes) WHERE (purged_at IS NULL);


--
-- Name: ix_idempotency_keys_created_at; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_idempotency_keys_created_at ON public.idempotency_keys USING btree (created_at);


--
-- Name: ix_jobs_claim; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_claim ON public.jobs USING btree (state, project_id, is_urgent DESC, priority DESC, seq) WHERE (state = ANY (ARRAY['queued'::text, 'validating_files'::text]));


--
-- Name: ix_jobs_created; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_created ON public.jobs USING btree (project_id, created_at);


--
-- Name: ix_jobs_failed; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_failed ON public.jobs USING btree (finished_at) WHERE (state = 'failed'::text);


--
-- Name: ix_jobs_lease; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_lease ON public.jobs USING btree (lease_expires_at) WHERE (lease_owner IS NOT NULL);


--
-- Name: ix_jobs_metadata; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_metadata ON public.jobs USING gin (metadata jsonb_path_ops) WHERE (metadata IS NOT NULL);


--
-- Name: ix_jobs_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_page ON public.jobs USING btree (project_id, seq);


--
-- Name: ix_jobs_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_state ON public.jobs USING btree (project_id, state, seq);


--
-- Name: ix_jobs_training_file_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_training_file_id ON public.jobs USING btree (training_file_id);


--
-- Name: ix_jobs_validation_file_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_jobs_validation_file_id ON public.jobs USING btree (validation_file_id);


--
-- Name: ix_measurements_alike; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_measurements_alike ON public.measurements USING btree (base_manifest_sha256, device_name, quantization, created_at);


--
-- Name: ix_queue_places_position; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_queue_places_position ON public.queue_places USING btree ("position");


--
-- Name: ix_snapshots_job_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_snapshots_job_id ON public.snapshots USING btree (job_id);


--
-- Name: ix_tuned_models_project_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_tuned_models_project_id ON public.tuned_models USING btree (project_id);


--
-- Name: ix_upload_parts_start; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX ix_upload_parts_start ON public.upload_parts USING btree (upload_id, start) WHERE (start IS NOT NULL);


--
-- Name: ix_upload_parts_upload_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_upload_parts_upload_id ON public.upload_parts USING btree (upload_id);


--
-- Name: ix_uploads_pending; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_uploads_pending ON public.uploads USING btree (expires_at) WHERE (status = 'pending'::text);


--
-- Name: ix_uploads_project_id; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_uploads_project_id ON public.uploads USING btree (project_id);


--
-- Name: ix_webhook_deliveries_created_at; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_webhook_deliveries_created_at ON public.webhook_deliveries USING btree (created_at);


--
-- Name: ix_webhook_deliveries_due; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_webhook_deliveries_due ON public.webhook_deliveries USING btree (endpoint_id, next_attempt_at) WHERE (state = 'pending'::text);


--
-- Name: ix_webhook_deliveries_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_webhook_deliveries_page ON public.webhook_deliveries USING btree (endpoint_id, seq);


--
-- Name: ix_webhook_endpoints_page; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_webhook_endpoints_page ON public.webhook_endpoints USING btree (project_id, seq);


--
-- Name: uq_attempts_one_open; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_attempts_one_open ON public.attempts USING btree (job_id) WHERE (ended_at IS NULL);


--
-- Name: uq_base_model_registrations_unfinished; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_base_model_registrations_unfinished ON public.base_model_registrations USING btree (name) WHERE (state = ANY (ARRAY['queued'::text, 'running'::text]));


--
-- Name: uq_deliveries_one_of_a_model; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_deliveries_one_of_a_model ON public.deliveries USING btree (target_id, model) WHERE (state <> 'withdrawn'::text);


--
-- Name: uq_delivery_targets_name; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_delivery_targets_name ON public.delivery_targets USING btree (project_id, name) WHERE (deleted_at IS NULL);


--
-- Name: uq_exports_one_of_a_kind; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX uq_exports_one_of_a_kind ON public.exports USING btree (model, type, quantization) NULLS NOT DISTINCT WHERE ((deleted_at IS NULL) AND (state <> 'failed'::text));


--
-- Name: jobs announce_failed_job; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER announce_failed_job AFTER UPDATE ON public.jobs FOR EACH ROW WHEN (((old.state <> new.state) AND (new.state = 'failed'::text))) EXECUTE FUNCTION public.announce_failed_job();


--
-- Name: jobs announce_job; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER announce_job AFTER UPDATE ON public.jobs FOR EACH ROW WHEN ((old.state <> new.state)) EXECUTE FUNCTION public.announce_job();


--
-- Name: audit_log append_only_all; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER append_only_all BEFORE TRUNCATE ON public.audit_log FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change_of_audit_log();


--
-- Name: audit_log append_only_row; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER append_only_row BEFORE DELETE OR UPDATE ON public.audit_log FOR EACH ROW EXECUTE FUNCTION public.refuse_change_of_audit_log();


--
-- Name: evaluations end_evaluation_attempt; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER end_evaluation_attempt AFTER UPDATE OF lease_owner ON public.evaluations FOR EACH ROW EXECUTE FUNCTION public.end_evaluation_attempt();


--
-- Name: jobs guard_job; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER guard_job BEFORE UPDATE ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.guard_job();


--
-- Name: jobs notify_job; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER notify_job AFTER UPDATE ON public.jobs FOR EACH ROW WHEN ((new.version <> old.version)) EXECUTE FUNCTION public.notify_job();


--
-- Name: jobs notify_new_job; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER notify_new_job AFTER INSERT ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.notify_job();


--
-- Name: jobs version_job; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER version_job BEFORE UPDATE ON public.jobs FOR EACH ROW EXECUTE FUNCTION public.count_job_version();


--
-- Name: api_keys fk_api_keys_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT fk_api_keys_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: attempts fk_attempts_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT fk_attempts_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: attempts fk_attempts_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT fk_attempts_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: audit_log fk_audit_log_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT fk_audit_log_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: base_models fk_base_models_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.base_models
    ADD CONSTRAINT fk_base_models_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: checkpoint_permissions fk_checkpoint_permissions_grantee_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoint_permissions
    ADD CONSTRAINT fk_checkpoint_permissions_grantee_id_projects FOREIGN KEY (grantee_id) REFERENCES public.projects(id);


--
-- Name: checkpoint_permissions fk_checkpoint_permissions_model_id_tuned_models; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoint_permissions
    ADD CONSTRAINT fk_checkpoint_permissions_model_id_tuned_models FOREIGN KEY (model_id) REFERENCES public.tuned_models(id);


--
-- Name: checkpoint_permissions fk_checkpoint_permissions_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoint_permissions
    ADD CONSTRAINT fk_checkpoint_permissions_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: checkpoints fk_checkpoints_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT fk_checkpoints_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: checkpoints fk_checkpoints_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.checkpoints
    ADD CONSTRAINT fk_checkpoints_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: deliveries fk_deliveries_checkpoint_id_checkpoints; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT fk_deliveries_checkpoint_id_checkpoints FOREIGN KEY (checkpoint_id) REFERENCES public.checkpoints(id);


--
-- Name: deliveries fk_deliveries_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT fk_deliveries_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: deliveries fk_deliveries_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT fk_deliveries_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: deliveries fk_deliveries_target_id_delivery_targets; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT fk_deliveries_target_id_delivery_targets FOREIGN KEY (target_id) REFERENCES public.delivery_targets(id);


--
-- Name: delivery_targets fk_delivery_targets_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.delivery_targets
    ADD CONSTRAINT fk_delivery_targets_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: evaluation_attempts fk_evaluation_attempts_evaluation_id_evaluations; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluation_attempts
    ADD CONSTRAINT fk_evaluation_attempts_evaluation_id_evaluations FOREIGN KEY (evaluation_id) REFERENCES public.evaluations(id);


--
-- Name: evaluation_attempts fk_evaluation_attempts_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluation_attempts
    ADD CONSTRAINT fk_evaluation_attempts_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: evaluations fk_evaluations_checkpoint_id_checkpoints; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT fk_evaluations_checkpoint_id_checkpoints FOREIGN KEY (checkpoint_id) REFERENCES public.checkpoints(id);


--
-- Name: evaluations fk_evaluations_file_id_files; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT fk_evaluations_file_id_files FOREIGN KEY (file_id) REFERENCES public.files(id);


--
-- Name: evaluations fk_evaluations_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT fk_evaluations_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: evaluations fk_evaluations_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.evaluations
    ADD CONSTRAINT fk_evaluations_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: exports fk_exports_checkpoint_id_checkpoints; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.exports
    ADD CONSTRAINT fk_exports_checkpoint_id_checkpoints FOREIGN KEY (checkpoint_id) REFERENCES public.checkpoints(id);


--
-- Name: exports fk_exports_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.exports
    ADD CONSTRAINT fk_exports_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: exports fk_exports_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.exports
    ADD CONSTRAINT fk_exports_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: files fk_files_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.files
    ADD CONSTRAINT fk_files_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: idempotency_keys fk_idempotency_keys_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT fk_idempotency_keys_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: job_events fk_job_events_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events
    ADD CONSTRAINT fk_job_events_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: job_events fk_job_events_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_events
    ADD CONSTRAINT fk_job_events_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: job_logs fk_job_logs_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_logs
    ADD CONSTRAINT fk_job_logs_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: job_logs fk_job_logs_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.job_logs
    ADD CONSTRAINT fk_job_logs_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: jobs fk_jobs_cloned_from_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT fk_jobs_cloned_from_jobs FOREIGN KEY (cloned_from) REFERENCES public.jobs(id);


--
-- Name: jobs fk_jobs_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT fk_jobs_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: jobs fk_jobs_training_file_id_files; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT fk_jobs_training_file_id_files FOREIGN KEY (training_file_id) REFERENCES public.files(id);


--
-- Name: jobs fk_jobs_validation_file_id_files; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT fk_jobs_validation_file_id_files FOREIGN KEY (validation_file_id) REFERENCES public.files(id);


--
-- Name: measurements fk_measurements_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT fk_measurements_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: measurements fk_measurements_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT fk_measurements_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: project_usage fk_project_usage_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.project_usage
    ADD CONSTRAINT fk_project_usage_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: retention_rules fk_retention_rules_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.retention_rules
    ADD CONSTRAINT fk_retention_rules_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: served_references fk_served_references_checkpoint_id_checkpoints; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.served_references
    ADD CONSTRAINT fk_served_references_checkpoint_id_checkpoints FOREIGN KEY (checkpoint_id) REFERENCES public.checkpoints(id) ON DELETE CASCADE;


--
-- Name: served_references fk_served_references_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.served_references
    ADD CONSTRAINT fk_served_references_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: snapshots fk_snapshots_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT fk_snapshots_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: snapshots fk_snapshots_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT fk_snapshots_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: tuned_models fk_tuned_models_checkpoint_id_checkpoints; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tuned_models
    ADD CONSTRAINT fk_tuned_models_checkpoint_id_checkpoints FOREIGN KEY (checkpoint_id) REFERENCES public.checkpoints(id);


--
-- Name: tuned_models fk_tuned_models_job_id_jobs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tuned_models
    ADD CONSTRAINT fk_tuned_models_job_id_jobs FOREIGN KEY (job_id) REFERENCES public.jobs(id);


--
-- Name: tuned_models fk_tuned_models_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tuned_models
    ADD CONSTRAINT fk_tuned_models_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: upload_parts fk_upload_parts_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.upload_parts
    ADD CONSTRAINT fk_upload_parts_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: upload_parts fk_upload_parts_upload_id_uploads; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.upload_parts
    ADD CONSTRAINT fk_upload_parts_upload_id_uploads FOREIGN KEY (upload_id) REFERENCES public.uploads(id);


--
-- Name: uploads fk_uploads_file_id_files; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT fk_uploads_file_id_files FOREIGN KEY (file_id) REFERENCES public.files(id);


--
-- Name: uploads fk_uploads_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT fk_uploads_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: webhook_attempts fk_webhook_attempts_delivery_id_webhook_deliveries; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_attempts
    ADD CONSTRAINT fk_webhook_attempts_delivery_id_webhook_deliveries FOREIGN KEY (delivery_id) REFERENCES public.webhook_deliveries(id) ON DELETE CASCADE;


--
-- Name: webhook_attempts fk_webhook_attempts_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_attempts
    ADD CONSTRAINT fk_webhook_attempts_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: webhook_deliveries fk_webhook_deliveries_endpoint_id_webhook_endpoints; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT fk_webhook_deliveries_endpoint_id_webhook_endpoints FOREIGN KEY (endpoint_id) REFERENCES public.webhook_endpoints(id) ON DELETE CASCADE;


--
-- Name: webhook_deliveries fk_webhook_deliveries_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT fk_webhook_deliveries_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: webhook_endpoints fk_webhook_endpoints_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.webhook_endpoints
    ADD CONSTRAINT fk_webhook_endpoints_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- Name: workers fk_workers_project_id_projects; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.workers
    ADD CONSTRAINT fk_workers_project_id_projects FOREIGN KEY (project_id) REFERENCES public.projects(id);


--
-- PostgreSQL database dump complete
--


