// Package schema describes the entities from which the client in ../gen is generated.
package schema

import (
	"time"

	"entgo.io/ent"
	"entgo.io/ent/schema/edge"
	"entgo.io/ent/schema/field"
	"entgo.io/ent/schema/index"
)

// Player plays for other players' teams: a captain has a team.
type Player struct{ ent.Schema }

// Fields of the player.
func (Player) Fields() []ent.Field {
	return []ent.Field{
		field.String("name").NotEmpty(),
		field.String("email").Unique(),
		field.Int("score").Default(0).NonNegative(),
		field.JSON("badges", []string{}).Optional(),
		field.Time("joined").Default(time.Now).Immutable(),
		field.Int("captain_id").Optional(),
	}
}

// Edges of the player.
func (Player) Edges() []ent.Edge {
	return []ent.Edge{
		edge.To("team", Player.Type).From("captain").Unique().Field("captain_id"),
	}
}

// Indexes of the player.
func (Player) Indexes() []ent.Index {
	return []ent.Index{index.Fields("score", "name")}
}
