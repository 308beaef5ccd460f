// Fastify and node-postgres: one process, schemas for what comes and what goes, named statements, which `pg` prepares.
//
// The pool has 10 connections, the default of `pg`. Fastify writes the JSON with a serializer that it compiles from the
// response's schema. `int8` is read as a number, as ids stay below 2^53; a time stays text, as a Date drops
// the microseconds. Argon2 runs on libuv's threads.

import { hash } from "@node-rs/argon2";
import Fastify from "fastify";
import pg from "pg";

const COLUMNS = "id, fname, lname, email, created_at, updated_at";
const ARGON2ID = { memoryCost: 19456, timeCost: 2, parallelism: 1 };

pg.types.setTypeParser(pg.types.builtins.INT8, Number);
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => `${text.replace(" ", "T")}:00`);
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });

const name = { type: "string", minLength: 1, maxLength: 100 };
const email = { type: "string", format: "email", maxLength: 254 };
const password = { type: "string", minLength: 8, maxLength: 128 };
const time = { type: "string", format: "date-time" };
const user = {
  type: "object",
  properties: { id: { type: "integer" }, fname: name, lname: name, email, created_at: time, updated_at: time },
};
const change = { type: "object", properties: { fname: name, lname: name, email } };
const create = { ...change, required: ["fname", "lname", "email", "password"] };
create.properties = { ...change.properties, password };
const integer = { type: "integer" };
const limit = { ...integer, minimum: 1, maximum: 1000, default: 100 };
const page = { type: "object", properties: { limit, after: { ...integer, default: 0 } } };
const id = { type: "object", properties: { id: integer } };

const SELECT_USER = { name: "one", text: `SELECT ${COLUMNS} FROM "user" WHERE id = $1` };
const SELECT_USERS = { name: "page", text: `SELECT ${COLUMNS} FROM "user" WHERE id > $1 ORDER BY id LIMIT $2` };
const INSERT_USER = {
  name: "create",
  text: `INSERT INTO "user" (fname, lname, email, password_hash) VALUES ($1, $2, $3, $4) RETURNING ${COLUMNS}`,
};
const UPDATE_USER = {
  name: "update",
  text: `UPDATE "user" SET fname = coalesce($1, fname), lname = coalesce($2, lname), email = coalesce($3, email),
         updated_at = now() WHERE id = $4 RETURNING ${COLUMNS}`,
};

const app = Fastify({ keepAliveTimeout: 75_000 });
const rows = async (statement, ...values) => (await pool.query({ ...statement, values })).rows;
const one = (found, reply) => found[0] ?? reply.code(404).send();

app.get("/users/:id", { schema: { params: id, response: { 200: user } } }, async (request, reply) =>
  one(await rows(SELECT_USER, request.params.id), reply));

app.get("/users", { schema: { querystring: page, response: { 200: { type: "array", items: user } } } }, (request) =>
  rows(SELECT_USERS, request.query.after, request.query.limit));

app.post("/users", { schema: { body: create, response: { 201: user } } }, async ({ body }, reply) => {
  const found = await rows(INSERT_USER, body.fname, body.lname, body.email, await hash(body.password, ARGON2ID));
  return reply.code(201).send(found[0]);
});

app.patch("/users/:id", { schema: { params: id, body: change, response: { 200: user } } }, async (request, reply) => {
  const { fname, lname, email } = request.body;
  return one(await rows(UPDATE_USER, fname ?? null, lname ?? null, email ?? null, request.params.id), reply);
});

app.setErrorHandler((error, _request, reply) =>
  reply.code(error.code === "23505" ? 409 : (error.statusCode ?? 500)).send(error));

await app.listen({ host: "127.0.0.1", port: Number(process.argv[2]) });
