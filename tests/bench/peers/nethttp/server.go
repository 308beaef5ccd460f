// net/http and pgx: one process on every core, as Go has it, structs for what goes out, statements that pgx prepares.
//
// Reads only. The pool has as many connections as there are cores, pgx's default, or 4 at the least.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

const columns = "id, fname, lname, email, created_at, updated_at"
const selectUser = "SELECT " + columns + " FROM \"user\" WHERE id = $1"
const selectUsers = "SELECT " + columns + " FROM \"user\" WHERE id > $1 ORDER BY id LIMIT $2"

type user struct {
	ID        int64     `json:"id"`
	Fname     string    `json:"fname"`
	Lname     string    `json:"lname"`
	Email     string    `json:"email"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

func scan(row pgx.Row) (user, error) {
	var u user
	err := row.Scan(&u.ID, &u.Fname, &u.Lname, &u.Email, &u.CreatedAt, &u.UpdatedAt)
	u.CreatedAt, u.UpdatedAt = u.CreatedAt.UTC(), u.UpdatedAt.UTC()
	return u, err
}

func respond(w http.ResponseWriter, value interface{}, err error) {
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		http.Error(w, "no such user", http.StatusNotFound)
	case err != nil:
		http.Error(w, "the database failed", http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(value)
	}
}

func number(text string, preset int64) (int64, error) {
	if text == "" {
		return preset, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

func main() {
	pool, err := pgxpool.Connect(context.Background(), os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/users/", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/users/"), 10, 64)
		if err != nil || r.Method != http.MethodGet {
			http.Error(w, "an id is a number", http.StatusBadRequest)
			return
		}
		found, err := scan(pool.QueryRow(r.Context(), selectUser, id))
		respond(w, found, err)
	})
	http.HandleFunc("/users", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		after, wrong := number(query.Get("after"), 0)
		limit, alsoWrong := number(query.Get("limit"), 100)
		if wrong != nil || alsoWrong != nil || limit < 1 || limit > 1000 {
			http.Error(w, "limit and after are numbers", http.StatusBadRequest)
			return
		}
		rows, err := pool.Query(r.Context(), selectUsers, after, limit)
		if err != nil {
			respond(w, nil, err)
			return
		}
		defer rows.Close()
		found := []user{}
		for rows.Next() && err == nil {
			var next user
			next, err = scan(rows)
			found = append(found, next)
		}
		if err == nil {
			err = rows.Err()
		}
		respond(w, found, err)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
