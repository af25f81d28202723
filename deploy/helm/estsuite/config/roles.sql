-- Database, roles and schemas of the suite, as `estsuite up` makes them: a schema, its owner (for
-- `migrate`) and a runtime role per service, and a role that only reads, for `ca-signer check-store`,
-- to which `ca-signer migrate` grants the tables it reads. For psql, connected to the database `estsuite` as a
-- superuser; repeating it is harmless and sets the passwords anew.
--
-- Passwords are read from files <role>.password in a folder, so that none stands in this file:
--   psql -v secrets=/run/secrets -f roles.sql      (that folder is also the default)
\set ON_ERROR_STOP on
\if :{?secrets}
\else
\set secrets /run/secrets
\endif
\set ca_signer_password `cat :secrets/ca_signer.password`
\set ca_signer_owner_password `cat :secrets/ca_signer_owner.password`
\set ca_signer_reader_password `cat :secrets/ca_signer_reader.password`
\set renewal_password `cat :secrets/renewal.password`
\set renewal_owner_password `cat :secrets/renewal_owner.password`
\set audit_password `cat :secrets/audit.password`
\set audit_owner_password `cat :secrets/audit_owner.password`

set password_encryption = 'scram-sha-256';
-- A statement with a password must not reach the server's log.
set log_statement = 'none';
set log_min_error_statement = 'panic';

select format('revoke all on database %I from public', current_database()) \gexec
revoke all on schema public from public;

select format('create role %I login', name)
from unnest(array['ca_signer', 'ca_signer_owner', 'ca_signer_reader', 'renewal', 'renewal_owner',
                  'audit', 'audit_owner']) as name
where not exists (select from pg_roles where rolname = name) \gexec
alter role ca_signer password :'ca_signer_password';
alter role ca_signer_owner password :'ca_signer_owner_password';
alter role ca_signer_reader password :'ca_signer_reader_password';
alter role ca_signer_reader set default_transaction_read_only = on;
alter role renewal password :'renewal_password';
alter role renewal_owner password :'renewal_owner_password';
alter role audit password :'audit_password';
alter role audit_owner password :'audit_owner_password';

select format('grant connect on database %I to %I', current_database(), name)
from unnest(array['ca_signer', 'ca_signer_owner', 'ca_signer_reader', 'renewal', 'renewal_owner',
                  'audit', 'audit_owner']) as name \gexec
create schema if not exists ca_signer authorization ca_signer_owner;
create schema if not exists renewal authorization renewal_owner;
create schema if not exists audit authorization audit_owner;
grant usage on schema ca_signer to ca_signer, ca_signer_reader;
grant usage on schema renewal to renewal;
grant usage on schema audit to audit;
