BEGIN TRANSACTION;
CREATE TABLE accounts (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, cap_nano INTEGER, cap_tokens INTEGER, cap_steps INTEGER, cap_tool_calls INTEGER, extra_nano INTEGER NOT NULL DEFAULT 0, extra_tokens INTEGER NOT NULL DEFAULT 0, extra_steps INTEGER NOT NULL DEFAULT 0, extra_tool_calls INTEGER NOT NULL DEFAULT 0, spent_nano INTEGER NOT NULL DEFAULT 0, spent_tokens INTEGER NOT NULL DEFAULT 0, spent_steps INTEGER NOT NULL DEFAULT 0, spent_tool_calls INTEGER NOT NULL DEFAULT 0, held_nano INTEGER NOT NULL DEFAULT 0, held_tokens INTEGER NOT NULL DEFAULT 0, unknown_nano INTEGER NOT NULL DEFAULT 0, unknown_tokens INTEGER NOT NULL DEFAULT 0, expected_nano INTEGER NOT NULL DEFAULT 0, expected_tokens INTEGER NOT NULL DEFAULT 0, in_flight INTEGER NOT NULL DEFAULT 0, stopped TEXT);
INSERT INTO "accounts" VALUES(1,'run:a',100,NULL,NULL,NULL,5,0,0,0,30,10,3,0,30,0,9,0,30,0,1,NULL);
INSERT INTO "accounts" VALUES(2,'limit:b',200,NULL,NULL,NULL,0,0,0,0,30,10,3,0,30,0,9,0,30,0,1,NULL);
CREATE TABLE holds (call_id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, offer INTEGER NOT NULL DEFAULT 0, nano INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, tool_calls INTEGER NOT NULL DEFAULT 0, expected_nano INTEGER NOT NULL DEFAULT 0, expected_tokens INTEGER NOT NULL DEFAULT 0, charged_nano INTEGER NOT NULL DEFAULT 0, charged_tokens INTEGER NOT NULL DEFAULT 0, unknown_nano INTEGER NOT NULL DEFAULT 0, unknown_tokens INTEGER NOT NULL DEFAULT 0, since_ns INTEGER NOT NULL DEFAULT 0, revision INTEGER NOT NULL DEFAULT 0, accounts TEXT NOT NULL, about TEXT) WITHOUT ROWID;
INSERT INTO "holds" VALUES('held','0123456789abcdef0123456789abcdef','held',0,30,0,1,0,30,0,0,0,0,0,7,0,'[[1,"run:a"],[2,"limit:b"]]','{"run_id":"r1","parent_run_id":null,"tags":{"user":"ada","task":"refund"},"provider":"openai","model":"gpt-4o","tier":"gpt-4o","attempt":1,"started_ns":1000}');
INSERT INTO "holds" VALUES('unknown','0123456789abcdef0123456789abcdef','unknown',0,30,0,1,0,30,0,5,0,9,0,7,1,'[[1,"run:a"],[2,"limit:b"]]','{"run_id":"r1","parent_run_id":null,"tags":{"user":"ada","task":"refund"},"provider":"openai","model":"gpt-4o","tier":"gpt-4o","attempt":1,"started_ns":1000}');
CREATE TABLE owners (id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, beat_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tombstones (call_id TEXT PRIMARY KEY, at_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE top_ups (account INTEGER NOT NULL, key TEXT NOT NULL, nano INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, tool_calls INTEGER NOT NULL DEFAULT 0, at_ns INTEGER NOT NULL,
  PRIMARY KEY (account, key)) WITHOUT ROWID;
INSERT INTO "top_ups" VALUES(1,'key',5,0,0,0,7);
CREATE TABLE usage (n INTEGER PRIMARY KEY AUTOINCREMENT,
  call_id TEXT NOT NULL, revision INTEGER NOT NULL, run_id TEXT NOT NULL, parent_run_id TEXT, tags TEXT NOT NULL, provider TEXT, model TEXT, tier TEXT, attempt INTEGER NOT NULL, started_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL, state TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, cache_read_tokens INTEGER, cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER, reasoning_tokens INTEGER, cache_write_12h_tokens INTEGER, input_audio_tokens INTEGER, output_audio_tokens INTEGER, output_image_tokens INTEGER, web_searches INTEGER, cost_nano INTEGER, unknown_nano INTEGER NOT NULL, price_source TEXT, latency_ns INTEGER, error_type TEXT, resolved_by TEXT);
INSERT INTO "usage" VALUES(1,'settled',0,'r1',NULL,'{"user":"ada","task":"refund"}','openai','gpt-4o','gpt-4o',1,1000,7,'settled',7,3,0,0,0,0,0,0,0,0,0,25,0,'catalog',5000,NULL,NULL);
INSERT INTO "usage" VALUES(2,'unknown',0,'r1',NULL,'{"user":"ada","task":"refund"}','openai','gpt-4o','gpt-4o',1,1000,7,'unknown',7,3,0,0,0,0,0,0,0,0,0,5,9,'catalog',5000,NULL,NULL);
CREATE TABLE verdicts (run_id TEXT PRIMARY KEY, verdict TEXT NOT NULL, at_ns INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "verdicts" VALUES('r1','succeeded',7);
CREATE INDEX held_by_owner ON holds (owner) WHERE state = 'held';
CREATE INDEX usage_by_run ON usage (run_id);
CREATE INDEX usage_revised ON usage (call_id) WHERE revision > 0;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('accounts',2);
INSERT INTO "sqlite_sequence" VALUES('usage',2);
COMMIT;
