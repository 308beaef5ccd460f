// A round with the client that OpenAPI Generator makes for Go.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	users "example.com/users/client"
)

func check(holds bool, what ...any) {
	if !holds {
		fmt.Fprintln(os.Stderr, what...)
		os.Exit(1)
	}
}

func connect(url string) *users.APIClient {
	configuration := users.NewConfiguration()
	configuration.Servers = users.ServerConfigurations{{URL: url}}
	return users.NewAPIClient(configuration)
}

func problem(err error) users.Problem {
	failed, isAPIError := err.(*users.GenericOpenAPIError)
	check(isAPIError, err)
	found, isProblem := failed.Model().(users.Problem)
	check(isProblem, err)
	return found
}

func main() {
	api, ctx := connect(os.Args[1]).UsersAPI, context.Background()

	var ids []int64
	for _, name := range []string{"one", "two"} {
		body := users.NewUserCreation(name, "Go", name+"@go.example.com", "correct horse")
		created, response, err := api.CreateUser(ctx).UserCreation(*body).Execute()
		check(err == nil, err)
		check(response.Header.Get("Location") == fmt.Sprint("/users/", created.Id), response.Header)
		ids = append(ids, created.Id)
	}
	first, second := ids[0], ids[1]
	check(first >= 1<<31, first)

	page, response, err := api.ListUsers(ctx).Limit(1).After(first - 1).Execute()
	check(err == nil && len(page) == 1 && page[0].Id == first, page, err)
	check(strings.Contains(response.Header.Get("Link"), `rel="next"`), response.Header)
	page, _, err = api.ListUsers(ctx).Limit(1).After(first).Execute()
	check(err == nil && len(page) == 1 && page[0].Id == second, page, err)

	change := users.NewUserChange()
	change.SetFname("three")
	changed, _, err := api.ChangeUser(ctx, first).UserChange(*change).Execute()
	check(err == nil && changed.Fname == "three", changed, err)
	change.SetFname("")
	_, _, err = api.ChangeUser(ctx, first).UserChange(*change).Execute()
	refused := problem(err)
	check(refused.Code == "invalid-request" && *refused.Errors[0].Loc[1].String == "fname", refused)

	_, err = api.DeleteUser(ctx, first).Execute()
	check(err == nil, err)
	_, _, err = api.ReadUser(ctx, first).Execute()
	check(problem(err).Code == "user-not-found", err)

	_, _, err = connect(os.Args[2]).ServiceAPI.Readyz(ctx).Execute()
	unready := problem(err)
	check(unready.GetFailed() == "database", unready)
}
