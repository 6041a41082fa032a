// Package gen is the client that ent generates from ../schema.
package gen

//go:generate go run entgo.io/ent/cmd/ent generate --target . ../schema
