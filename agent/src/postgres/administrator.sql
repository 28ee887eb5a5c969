-- Roles for administrators on PostgreSQL 15 and older, where CREATEROLE reaches the operating system
-- (DESIGN §3.18: it may grant itself pg_execute_server_program). These functions run as the agent's
-- superuser, do the four things an administrator needs, and refuse every role that could do more.
-- All names are resolved in pg_catalog; every piece of text is quoted with %I or %L.

CREATE SCHEMA IF NOT EXISTS holdfast_admin;
REVOKE ALL ON SCHEMA holdfast_admin FROM PUBLIC;

CREATE OR REPLACE FUNCTION holdfast_admin.ordinary_role(role_name text) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS
$function$
DECLARE
    role record;
BEGIN
    SELECT r.oid, r.rolname, r.rolsuper, r.rolreplication, r.rolbypassrls, r.rolcreaterole
      INTO role
      FROM pg_catalog.pg_roles r
     WHERE r.rolname = role_name::name AND pg_catalog.octet_length(role_name) <= 63;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'role "%" does not exist', role_name USING ERRCODE = 'undefined_object';
    END IF;
    IF role.rolsuper OR role.rolreplication OR role.rolbypassrls OR role.rolcreaterole
       OR pg_catalog.starts_with(role.rolname::text, 'holdfast')
       OR pg_catalog.starts_with(role.rolname::text, 'pg_')
       OR EXISTS (SELECT FROM pg_catalog.pg_roles p
                   WHERE p.oid <> role.oid
                     AND p.rolname <> 'pg_database_owner'
                     AND (p.rolsuper OR p.rolreplication OR p.rolbypassrls OR p.rolcreaterole
                          OR pg_catalog.starts_with(p.rolname::text, 'pg_'))
                     AND pg_catalog.pg_has_role(role.oid, p.oid, 'MEMBER'))
    THEN
        RAISE EXCEPTION 'role "%" is reserved', role_name USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION holdfast_admin.create_role(
    role_name        text,
    password         text    DEFAULT NULL,
    can_login        boolean DEFAULT true,
    can_create_db    boolean DEFAULT false,
    connection_limit integer DEFAULT -1,
    valid_until      timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$function$
BEGIN
    IF role_name IS NULL OR role_name = '' OR pg_catalog.octet_length(role_name) > 63
       OR pg_catalog.starts_with(pg_catalog.lower(role_name), 'pg_')
       OR pg_catalog.starts_with(pg_catalog.lower(role_name), 'holdfast')
       OR pg_catalog.lower(role_name) IN ('public', 'none') THEN
        RAISE EXCEPTION 'role name "%" is reserved', role_name USING ERRCODE = 'reserved_name';
    END IF;
    EXECUTE pg_catalog.format(
        'CREATE ROLE %I NOSUPERUSER NOCREATEROLE NOREPLICATION NOBYPASSRLS %s %s CONNECTION LIMIT %s',
        role_name,
        CASE WHEN can_login THEN 'LOGIN' ELSE 'NOLOGIN' END,
        CASE WHEN can_create_db THEN 'CREATEDB' ELSE 'NOCREATEDB' END,
        COALESCE(connection_limit, -1));
    PERFORM holdfast_admin.alter_role(role_name, password, NULL, NULL, NULL, valid_until);
END
$function$;

CREATE OR REPLACE FUNCTION holdfast_admin.alter_role(
    role_name        text,
    password         text    DEFAULT NULL,
    can_login        boolean DEFAULT NULL,
    can_create_db    boolean DEFAULT NULL,
    connection_limit integer DEFAULT NULL,
    valid_until      timestamptz DEFAULT NULL) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$function$
BEGIN
    PERFORM holdfast_admin.ordinary_role(role_name);
    IF password IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I PASSWORD %L', role_name, password);
    END IF;
    IF can_login IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I %s', role_name,
                                  CASE WHEN can_login THEN 'LOGIN' ELSE 'NOLOGIN' END);
    END IF;
    IF can_create_db IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I %s', role_name,
                                  CASE WHEN can_create_db THEN 'CREATEDB' ELSE 'NOCREATEDB' END);
    END IF;
    IF connection_limit IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I CONNECTION LIMIT %s', role_name, connection_limit);
    END IF;
    IF valid_until IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I VALID UNTIL %L', role_name, valid_until);
    END IF;
END
$function$;

CREATE OR REPLACE FUNCTION holdfast_admin.drop_role(role_name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$function$
BEGIN
    PERFORM holdfast_admin.ordinary_role(role_name);
    EXECUTE pg_catalog.format('DROP ROLE %I', role_name);
END
$function$;

CREATE OR REPLACE FUNCTION holdfast_admin.grant_role(
    role_name text, member_name text, with_admin boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$function$
BEGIN
    PERFORM holdfast_admin.ordinary_role(role_name);
    PERFORM holdfast_admin.ordinary_role(member_name);
    EXECUTE pg_catalog.format('GRANT %I TO %I%s', role_name, member_name,
                              CASE WHEN with_admin THEN ' WITH ADMIN OPTION' ELSE '' END);
END
$function$;

CREATE OR REPLACE FUNCTION holdfast_admin.revoke_role(role_name text, member_name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$function$
BEGIN
    PERFORM holdfast_admin.ordinary_role(role_name);
    PERFORM holdfast_admin.ordinary_role(member_name);
    EXECUTE pg_catalog.format('REVOKE %I FROM %I', role_name, member_name);
END
$function$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA holdfast_admin FROM PUBLIC;
