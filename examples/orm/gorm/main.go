// Command gorm uses GORM, with its official SQLite dialector, on a cluster of three.
//
// The dialector takes any *sql.DB as its Conn. It imports the driver github.com/mattn/go-sqlite3
// without using it here: build with CGO_ENABLED=0 and none of that driver's C is compiled.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

// Author has articles; deleting one keeps its row and hides it.
type Author struct {
	gorm.Model
	Name     string `gorm:"not null"`
	Email    string `gorm:"uniqueIndex"`
	Articles []Article
}

// BeforeCreate is a hook: what it returns as an error ends the transaction around it.
func (a *Author) BeforeCreate(*gorm.DB) error {
	if a.Name == "" {
		return errors.New("an author has a name")
	}
	return nil
}

// Article belongs to an author and shares its tags with others.
type Article struct {
	ID        uint
	AuthorID  uint
	Title     string
	Words     int `gorm:"check:words >= 0"`
	Published *time.Time
	Tags      []Tag `gorm:"many2many:article_tags"`
}

// Tag is found by its name.
type Tag struct {
	ID   uint
	Name string `gorm:"uniqueIndex"`
}

func main() { cluster.Main(run) }

// open gives GORM a handle of the node's. TranslateError makes gorm.ErrDuplicatedKey of
// SQLite's error.
func open(node *colmena.Node) (*gorm.DB, error) {
	db, err := node.OpenDB("", colmena.ForeignKeys(true))
	if err != nil {
		return nil, err
	}
	return gorm.Open(&sqlite.Dialector{Conn: db}, &gorm.Config{TranslateError: true, Logger: logger.Default.LogMode(logger.Silent)})
}

func run(ctx context.Context, node *colmena.Node) error {
	db, err := open(node)
	if err != nil {
		return err
	}
	db = db.WithContext(ctx)
	if err := db.AutoMigrate(&Author{}, &Article{}, &Tag{}); err != nil {
		return err
	}
	ada := Author{Name: "Ada", Email: "ada@example.org", Articles: []Article{
		{Title: "Notes", Words: 20_000, Tags: []Tag{{Name: "engines"}, {Name: "numbers"}}},
	}}
	if err := db.Create(&ada).Error; err != nil {
		return err
	}
	err = db.Create(&Author{Name: "Imposter", Email: ada.Email}).Error
	if !errors.Is(err, gorm.ErrDuplicatedKey) {
		return fmt.Errorf("a second author of one address: %v", err)
	}
	var found Author
	if err := db.Preload("Articles.Tags").First(&found, "email = ?", ada.Email).Error; err != nil {
		return err
	}
	fmt.Printf("%s wrote %q, about %s and %s\n", found.Name, found.Articles[0].Title, found.Articles[0].Tags[0].Name, found.Articles[0].Tags[1].Name)
	return nil
}
