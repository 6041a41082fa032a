package main

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"entgo.io/ent/dialect/sql/schema"
	"entgo.io/ent/dialect/sql/sqlgraph"
	"entgo.io/ent/schema/field"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/ent/gen"
	"github.com/mentasystems/colmena/examples/orm/ent/gen/migrate"
	"github.com/mentasystems/colmena/examples/orm/ent/gen/player"
	"github.com/mentasystems/colmena/examples/orm/internal/clustertest"
)

func TestProgram(t *testing.T) {
	if err := run(clustertest.Context(t), clustertest.Follower(t)); err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// migrated is a client of a follower with the tables of the schema.
func migrated(t *testing.T) (*gen.Client, context.Context) {
	t.Helper()
	ctx := clustertest.Context(t)
	client := must(open(clustertest.Follower(t)))(t)
	t.Cleanup(func() { check(t, client.Close()) })
	check(t, client.Schema.Create(ctx))
	return client, ctx
}

func TestEdgesAndPredicates(t *testing.T) {
	client, ctx := migrated(t)
	now := time.Now()
	ada := must(client.Player.Create().SetName("Ada").SetEmail("ada").SetBadges([]string{"a", "b"}).Save(ctx))(t)
	bulk := must(client.Player.MapCreateBulk([]string{"Bob", "Cleo", "Dan"}, func(c *gen.PlayerCreate, i int) {
		name := []string{"Bob", "Cleo", "Dan"}[i]
		c.SetName(name).SetEmail(name).SetScore(i * 10).SetCaptain(ada)
	}).Save(ctx))(t)
	if ids := []int{bulk[0].ID, bulk[1].ID, bulk[2].ID}; !slices.Equal(ids, []int{ada.ID + 1, ada.ID + 2, ada.ID + 3}) {
		t.Errorf("IDs %v after %d", ids, ada.ID)
	}
	found := must(client.Player.Query().Where(player.Email("ada")).WithTeam(func(q *gen.PlayerQuery) { q.Order(player.ByScore(entsql.OrderDesc())) }).Only(ctx))(t)
	if len(found.Edges.Team) != 3 || found.Edges.Team[0].Name != "Dan" || !slices.Equal(found.Badges, ada.Badges) || !found.Joined.Equal(ada.Joined) || found.Joined.Before(now) {
		t.Errorf("%v with %v", found, found.Edges.Team)
	}
	check(t, bulk[2].Update().ClearCaptain().AddScore(5).AppendBadges([]string{"free"}).Exec(ctx))
	dan := must(client.Player.Get(ctx, bulk[2].ID))(t)
	if dan.Score != 25 || dan.CaptainID != 0 || !slices.Equal(dan.Badges, []string{"free"}) {
		t.Errorf("%v", dan)
	}
	var groups []struct {
		CaptainID  sql.NullInt64 `json:"captain_id"`
		Sum, Count int
	}
	check(t, client.Player.Query().GroupBy(player.FieldCaptainID).Aggregate(gen.Count(), gen.Sum(player.FieldScore)).Scan(ctx, &groups))
	if len(groups) != 2 || groups[1].Count != 2 || groups[1].Sum != 10 {
		t.Errorf("%+v", groups)
	}
	names := must(client.Player.Query().Where(player.Or(player.NameContainsFold("aD"), player.ScoreIn(10, 25))).Order(player.ByID()).Limit(2).Offset(1).Select(player.FieldName).Strings(ctx))(t)
	if !slices.Equal(names, []string{"Cleo", "Dan"}) {
		t.Errorf("%v", names)
	}
	if n := must(client.Player.Update().Where(player.HasCaptain()).SetScore(1).Save(ctx))(t); n != 2 {
		t.Errorf("%d updated", n)
	}
	if n := must(client.Player.Delete().Where(player.Score(1)).Exec(ctx))(t); n != 2 {
		t.Errorf("%d deleted", n)
	}
	if n := must(client.Player.Query().Count(ctx))(t); n != 2 {
		t.Errorf("%d left", n)
	}
}

func TestConstraintErrors(t *testing.T) {
	client, ctx := migrated(t)
	ada := must(client.Player.Create().SetName("Ada").SetEmail("ada").Save(ctx))(t)
	err := client.Player.Create().SetName("Eve").SetEmail("ada").Exec(ctx)
	if !gen.IsConstraintError(err) || !sqlgraph.IsUniqueConstraintError(err) || !colmena.IsUnique(err) {
		t.Errorf("a duplicate: %v", err)
	}
	err = client.Player.Create().SetName("Eve").SetEmail("eve").SetCaptainID(99).Exec(ctx)
	if !gen.IsConstraintError(err) || !sqlgraph.IsForeignKeyConstraintError(err) || !colmena.IsForeignKey(err) {
		t.Errorf("a captain who is not: %v", err)
	}
	if err := ada.Update().SetScore(-1).Exec(ctx); !gen.IsValidationError(err) {
		t.Errorf("a negative score: %v", err)
	}
	if err := client.Player.UpdateOneID(99).SetScore(1).Exec(ctx); !gen.IsNotFound(err) {
		t.Errorf("nobody: %v", err)
	}
}

func TestTransactionsAndHooks(t *testing.T) {
	client, ctx := migrated(t)
	seen := 0
	client.Player.Use(func(next gen.Mutator) gen.Mutator {
		return gen.MutateFunc(func(ctx context.Context, m gen.Mutation) (gen.Value, error) { seen++; return next.Mutate(ctx, m) })
	})
	tx := must(client.Tx(ctx))(t)
	ada := must(tx.Player.Create().SetName("Ada").SetEmail("ada").Save(ctx))(t)
	if err := tx.Player.Create().SetName("Eve").SetEmail("ada").Exec(ctx); !gen.IsConstraintError(err) {
		t.Errorf("a duplicate: %v", err)
	}
	bob := must(tx.Player.Create().SetName("Bob").SetEmail("bob").SetCaptain(ada).Save(ctx))(t)
	if captain := must(bob.QueryCaptain().Only(ctx))(t); captain.ID != ada.ID {
		t.Errorf("the transaction sees captain %v", captain)
	}
	if n := must(client.Player.Query().Count(ctx))(t); n != 0 {
		t.Errorf("%d players seen from outside", n)
	}
	committed := false
	tx.OnCommit(func(next gen.Committer) gen.Committer {
		return gen.CommitFunc(func(ctx context.Context, tx *gen.Tx) error {
			err := next.Commit(ctx, tx)
			committed = err == nil
			return err
		})
	})
	check(t, tx.Commit())
	undone := must(client.Tx(ctx))(t)
	undone.Player.Delete().ExecX(ctx)
	check(t, undone.Rollback())
	if n := must(client.Player.Query().Count(ctx))(t); n != 2 || !committed || seen != 4 {
		t.Errorf("%d players, committed %v, %d mutations", n, committed, seen)
	}
	snapshot := must(client.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}))(t)
	var refused *colmena.RefusedError
	if err := snapshot.Player.Update().SetScore(1).Exec(ctx); !errors.As(err, &refused) {
		t.Errorf("a write in a read-only transaction: %v", err)
	}
	check(t, snapshot.Rollback())
}

// TestSchemaChanges migrates to a schema with a column and an index more, and one less,
// for which ent copies the table with foreign keys off.
func TestSchemaChanges(t *testing.T) {
	ctx, node := clustertest.Context(t), clustertest.Follower(t)
	client := must(open(node))(t)
	defer client.Close()
	check(t, client.Schema.Create(ctx))
	check(t, client.Schema.Create(ctx)) // nothing to do
	ada := must(client.Player.Create().SetName("Ada").SetEmail("ada").Save(ctx))(t)
	check(t, client.Player.Create().SetName("Bob").SetEmail("bob").SetCaptain(ada).Exec(ctx))

	later := *migrate.PlayersTable
	later.Columns = append(slices.Clone(later.Columns), &schema.Column{Name: "nick", Type: field.TypeString, Default: "none", Size: 40})
	later.Columns = slices.DeleteFunc(later.Columns, func(c *schema.Column) bool { return c.Name == "badges" })
	later.Indexes = append(slices.Clone(later.Indexes), &schema.Index{Name: "by_nick", Columns: later.Columns[len(later.Columns)-1:]})
	db := must(node.OpenDB("", colmena.ForeignKeys(true)))(t)
	defer db.Close()
	m := must(schema.NewMigrate(entsql.OpenDB(dialect.SQLite, db), schema.WithDropColumn(true), schema.WithDropIndex(true)))(t)
	check(t, m.Create(ctx, &later))
	var nick, captain string
	check(t, db.QueryRowContext(ctx, "SELECT a.nick, b.name FROM players a JOIN players b ON a.captain_id = b.id").Scan(&nick, &captain))
	var badges, index int
	check(t, db.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM pragma_table_info('players') WHERE name='badges'), (SELECT count(*) FROM pragma_index_list('players') WHERE name='by_nick')").Scan(&badges, &index))
	if nick != "none" || captain != "Ada" || badges != 0 || index != 1 {
		t.Errorf("nick %q, captain %q, %d columns that were dropped, %d indexes", nick, captain, badges, index)
	}
	if _, err := db.ExecContext(ctx, "INSERT INTO players(name, email, joined, captain_id) VALUES('Eve', 'eve', 0, 99)"); !colmena.IsForeignKey(err) {
		t.Errorf("foreign keys after the migration: %v", err)
	}
}
