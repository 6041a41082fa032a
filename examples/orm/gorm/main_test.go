package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/clustertest"
)

func TestProgram(t *testing.T) {
	if err := run(clustertest.Context(t), clustertest.Follower(t)); err != nil {
		t.Fatal(err)
	}
}

// migrated is a handle of a follower with the tables of the example.
func migrated(t *testing.T) *gorm.DB {
	t.Helper()
	db, err := open(clustertest.Follower(t))
	if err != nil {
		t.Fatal(err)
	}
	db = db.WithContext(clustertest.Context(t))
	must(t, db.AutoMigrate(&Author{}, &Article{}, &Tag{}))
	return db
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, db *gorm.DB) int64 {
	t.Helper()
	var n int64
	must(t, db.Count(&n).Error)
	return n
}

func TestAssociations(t *testing.T) {
	db := migrated(t)
	ada := Author{Name: "Ada", Email: "ada"}
	must(t, db.Create(&ada).Error)
	must(t, db.Model(&ada).Association("Articles").Append(&Article{Title: "A"}, &Article{Title: "B"}))
	if n := db.Model(&ada).Association("Articles").Count(); n != 2 {
		t.Errorf("%d articles", n)
	}
	a := ada.Articles[0]
	must(t, db.Model(&a).Association("Tags").Replace(&Tag{Name: "z"}))
	must(t, db.Model(&a).Association("Tags").Append(&Tag{Name: "w"}))
	var found Author
	must(t, db.Preload("Articles", func(db *gorm.DB) *gorm.DB { return db.Order("title DESC") }).Preload("Articles.Tags", func(db *gorm.DB) *gorm.DB { return db.Order("name") }).First(&found, ada.ID).Error)
	got := fmt.Sprint(found.Articles[0].Title, found.Articles[1].Title)
	for _, tag := range found.Articles[1].Tags {
		got += " " + tag.Name
	}
	if got != "BA w z" {
		t.Errorf("preloaded %q", got)
	}
	must(t, db.Model(&a).Association("Tags").Clear())
	if n := db.Model(&a).Association("Tags").Count(); n != 0 {
		t.Errorf("%d tags after Clear", n)
	}
	if n := count(t, db.Model(&Tag{})); n != 2 {
		t.Errorf("%d tags are left", n)
	}
	must(t, db.Select("Articles").Delete(&ada).Error)
	if n := count(t, db.Model(&Article{})); n != 0 {
		t.Errorf("%d articles of a deleted author", n)
	}
	if n, all := count(t, db.Model(&Author{})), count(t, db.Unscoped().Model(&Author{})); n != 0 || all != 1 {
		t.Errorf("%d of %d authors after a soft delete", n, all)
	}
}

func TestErrorsAreTranslated(t *testing.T) {
	db := migrated(t)
	must(t, db.Create(&Author{Name: "Ada", Email: "ada"}).Error)
	for what, err := range map[string]error{
		"unique index": db.Create(&Author{Name: "Eve", Email: "ada"}).Error,
		"primary key":  db.Create(&Author{Model: gorm.Model{ID: 1}, Name: "Eve", Email: "eve"}).Error,
		"update":       db.Create(&Author{Name: "Bob", Email: "bob"}).Model(&Author{}).Where("name = ?", "Bob").Update("email", "ada").Error,
	} {
		if !errors.Is(err, gorm.ErrDuplicatedKey) {
			t.Errorf("%s: %v, want ErrDuplicatedKey", what, err)
		}
	}
	if err := db.Create(&Article{AuthorID: 99, Title: "lost"}).Error; !errors.Is(err, gorm.ErrForeignKeyViolated) {
		t.Errorf("an article of nobody: %v, want ErrForeignKeyViolated", err)
	}
	var sqlError *colmena.SQLError
	if err := db.Create(&Article{AuthorID: 1, Words: -1}).Error; !errors.As(err, &sqlError) || !colmena.IsCheck(err) {
		t.Errorf("negative words: %v, want a *colmena.SQLError of a CHECK", err)
	}
	if err := db.First(&Author{}, 99).Error; !errors.Is(err, gorm.ErrRecordNotFound) {
		t.Errorf("nobody: %v", err)
	}
}

func TestTransactions(t *testing.T) {
	db := migrated(t)
	spoiled := errors.New("spoiled")
	err := db.Transaction(func(tx *gorm.DB) error {
		must(t, tx.Create(&Tag{Name: "outer"}).Error)
		err := tx.Transaction(func(inner *gorm.DB) error { // a savepoint
			must(t, inner.Create(&Tag{Name: "inner"}).Error)
			if n := count(t, inner.Model(&Tag{})); n != 2 {
				t.Errorf("the inner transaction sees %d tags", n)
			}
			return spoiled
		})
		if !errors.Is(err, spoiled) {
			t.Errorf("the inner transaction: %v", err)
		}
		// A failed statement does not end the transaction.
		if err := tx.Create(&Tag{Name: "outer"}).Error; !errors.Is(err, gorm.ErrDuplicatedKey) {
			t.Errorf("twice: %v", err)
		}
		must(t, tx.SavePoint("here").Error)
		must(t, tx.Create(&Tag{Name: "undone"}).Error)
		must(t, tx.RollbackTo("here").Error)
		return tx.Create(&Tag{Name: "last"}).Error
	})
	must(t, err)
	if err := db.Transaction(func(tx *gorm.DB) error { must(t, tx.Create(&Tag{Name: "never"}).Error); return spoiled }); !errors.Is(err, spoiled) {
		t.Error(err)
	}
	if err := db.Create(&Author{Email: "nobody", Articles: []Article{{Title: "orphan"}}}).Error; err == nil {
		t.Error("the hook let an author without a name pass")
	}
	var names []string
	must(t, db.Model(&Tag{}).Order("id").Pluck("name", &names).Error)
	if !slices.Equal(names, []string{"outer", "last"}) || count(t, db.Model(&Author{})) != 0 {
		t.Errorf("tags %v", names)
	}
	tx := db.Begin(&sql.TxOptions{ReadOnly: true})
	must(t, tx.Error)
	must(t, db.Create(&Tag{Name: "later"}).Error)
	if n := count(t, tx.Model(&Tag{})); n != 2 {
		t.Errorf("the snapshot has %d tags", n)
	}
	must(t, tx.Rollback().Error)
}

func TestUpsertsBatchesAndRawSQL(t *testing.T) {
	db := migrated(t)
	tags := make([]Tag, 250)
	for i := range tags {
		tags[i].Name = fmt.Sprint("tag ", i)
	}
	must(t, db.CreateInBatches(&tags, 100).Error)
	for i := range tags {
		if tags[i].ID != uint(i+1) {
			t.Fatalf("tag %d has ID %d", i, tags[i].ID)
		}
	}
	up := Tag{Name: "tag 7"}
	must(t, db.Clauses(clause.OnConflict{Columns: []clause.Column{{Name: "name"}}, DoUpdates: clause.Assignments(map[string]any{"name": "seven"})}).Create(&up).Error)
	if up.ID != 8 {
		t.Errorf("the upsert returned ID %d", up.ID)
	}
	res := db.Clauses(clause.OnConflict{DoNothing: true}).Create(&Tag{Name: "seven"})
	if must(t, res.Error); res.RowsAffected != 0 {
		t.Errorf("%d rows where nothing was to be done", res.RowsAffected)
	}
	var seven Tag
	must(t, db.Where(Tag{Name: "seven"}).FirstOrCreate(&seven).Error)
	var returned []Tag
	res = db.Model(&returned).Clauses(clause.Returning{}).Where("id <= ?", 3).Update("name", gorm.Expr("name || ?", "!"))
	if must(t, res.Error); res.RowsAffected != 3 || len(returned) != 3 || returned[2].Name != "tag 2!" {
		t.Errorf("update returned %d rows, %v", res.RowsAffected, returned)
	}
	var seen int
	must(t, db.Model(&Tag{}).FindInBatches(&[]Tag{}, 60, func(tx *gorm.DB, _ int) error { seen += int(tx.RowsAffected); return nil }).Error)
	var total int
	must(t, db.Raw("SELECT count(*) FROM tags WHERE name LIKE @like", sql.Named("like", "tag%")).Scan(&total).Error)
	if seen != 250 || total != 249 || seven.ID != 8 {
		t.Errorf("%d in batches, %d by hand, %+v", seen, total, seven)
	}
	rows, err := db.Model(&Tag{}).Order("id").Limit(2).Rows()
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var tag Tag
		must(t, db.ScanRows(rows, &tag))
	}
	must(t, rows.Err())
	var maps []map[string]any
	must(t, db.Model(&Tag{}).Where("id = ?", 5).Find(&maps).Error)
	if len(maps) != 1 || maps[0]["name"] != "tag 4" || fmt.Sprint(maps[0]["id"]) != "5" {
		t.Errorf("as a map: %v", maps)
	}
}

func TestTimesAndPreparedStatements(t *testing.T) {
	db := migrated(t).Session(&gorm.Session{PrepareStmt: true})
	when := time.Date(2024, 2, 29, 23, 59, 59, 123456789, time.FixedZone("", -3*3600))
	must(t, db.Create(&Author{Name: "Ada", Email: "ada", Articles: []Article{{Title: "dated", Published: &when}, {Title: "undated"}}}).Error)
	for range 3 {
		var articles []Article
		must(t, db.Order("title").Find(&articles).Error)
		if len(articles) != 2 || articles[0].Published == nil || !articles[0].Published.Equal(when) || articles[1].Published != nil {
			t.Fatalf("%+v", articles)
		}
	}
	if n := count(t, db.Model(&Article{}).Where("published > ?", when.Add(-time.Second))); n != 1 {
		t.Errorf("%d articles after a moment", n)
	}
	err := db.Transaction(func(tx *gorm.DB) error {
		must(t, tx.Create(&Tag{Name: "prepared"}).Error)
		return tx.Model(&Tag{}).Where("name = ?", "prepared").Update("name", "again").Error
	})
	must(t, err)
	if n := count(t, db.Model(&Tag{}).Where("name = ?", "again")); n != 1 {
		t.Errorf("%d", n)
	}
}

// Writer is Author as a later version of a program would have it.
type Writer struct {
	gorm.Model
	Name     string `gorm:"type:varchar(80);not null;default:anonymous"`
	Email    string `gorm:"uniqueIndex"`
	Language string `gorm:"index:by_language;default:en"`
}

func (Writer) TableName() string { return "authors" }

func TestMigrator(t *testing.T) {
	db := migrated(t)
	must(t, db.Create(&Author{Name: "Ada", Email: "ada"}).Error)
	for range 2 { // the second time there is nothing to do
		must(t, db.AutoMigrate(&Writer{}))
	}
	var w Writer
	must(t, db.First(&w).Error)
	if w.Name != "Ada" || w.Language != "en" {
		t.Errorf("%+v", w)
	}
	m := db.Migrator()
	for what, ok := range map[string]bool{
		"table": m.HasTable(&Writer{}), "column": m.HasColumn(&Writer{}, "language"), "index": m.HasIndex(&Writer{}, "by_language"),
		"constraint": m.HasConstraint(&Article{}, "fk_authors_articles"), "check": m.HasConstraint(&Article{}, "chk_articles_words"),
	} {
		if !ok {
			t.Errorf("no %s", what)
		}
	}
	must(t, m.DropIndex(&Writer{}, "by_language"))
	must(t, m.RenameColumn(&Writer{}, "language", "tongue"))
	must(t, m.DropColumn(&Writer{}, "tongue"))
	must(t, m.DropConstraint(&Article{}, "chk_articles_words"))
	must(t, m.CreateConstraint(&Article{}, "chk_articles_words"))
	must(t, m.AlterColumn(&Writer{}, "Name"))
	must(t, m.RenameTable("tags", "labels"))
	must(t, m.CreateView("names", gorm.ViewOption{Query: db.Model(&Writer{}).Select("name")}))
	tables := tablesOf(t, m)
	if !slices.Equal(tables, []string{"article_tags", "articles", "authors", "labels"}) {
		t.Errorf("tables %v", tables)
	}
	columns, err := m.ColumnTypes(&Writer{})
	must(t, err)
	var described []string
	for _, c := range columns {
		null, _ := c.Nullable()
		primary, _ := c.PrimaryKey()
		def, _ := c.DefaultValue()
		described = append(described, fmt.Sprint(c.Name(), " ", c.DatabaseTypeName(), " ", null, " ", primary, " ", def))
	}
	want := []string{"id integer true true ", "created_at datetime true false ", "updated_at datetime true false ", "deleted_at datetime true false ",
		"name varchar false false anonymous", "email text true false "}
	if !slices.Equal(described, want) {
		t.Errorf("columns\n%s\nwant\n%s", strings.Join(described, "\n"), strings.Join(want, "\n"))
	}
	var name string
	must(t, db.Table("names").Take(&name).Error)
	must(t, m.DropView("names"))
	must(t, m.DropTable("article_tags", &Article{}, &Writer{}, "labels"))
	if tables := tablesOf(t, m); len(tables) != 0 || name != "Ada" {
		t.Errorf("after all were dropped: %v; name %q", tables, name)
	}
}

// tablesOf are the tables of an application: GORM lists sqlite_sequence too.
func tablesOf(t *testing.T, m gorm.Migrator) []string {
	t.Helper()
	tables, err := m.GetTables()
	must(t, err)
	tables = slices.DeleteFunc(tables, func(name string) bool { return name == "sqlite_sequence" })
	slices.Sort(tables)
	return tables
}

func TestContextEndsAStatement(t *testing.T) {
	db := migrated(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.WithContext(ctx).Create(&Tag{Name: "late"}).Error; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if n := count(t, db.Model(&Tag{})); n != 0 {
		t.Errorf("%d tags", n)
	}
}
