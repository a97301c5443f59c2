package main

import (
	"encoding/xml"
	"fmt"
	"hash/fnv"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const patternBytes = 1 << 20

var pattern = makePattern()

func makePattern() []byte {
	made := make([]byte, patternBytes)
	state := uint64(88172645463325252)
	for i := range made {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		made[i] = byte(state)
	}
	return made
}

// A blob holds its bytes as blocks, or (none) computes them: byte o is pattern[(o + seed) mod 1 MiB].
type blob struct {
	size     int64
	seed     uint64
	etag     string
	modified time.Time
	blocks   []block
	metadata map[string]string
}

type block struct {
	id    string
	start int64
	data  []byte
}

func (b *blob) read(into []byte, offset int64) {
	if b.blocks != nil {
		at := sort.Search(len(b.blocks), func(i int) bool { return b.blocks[i].start > offset }) - 1
		for ; len(into) > 0 && at < len(b.blocks); at++ {
			n := copy(into, b.blocks[at].data[offset-b.blocks[at].start:])
			into, offset = into[n:], offset+int64(n)
		}
		return
	}
	for len(into) > 0 {
		at := (uint64(offset) + b.seed) % patternBytes
		n := copy(into, pattern[at:])
		into, offset = into[n:], offset+int64(n)
	}
}

type container struct {
	mu     sync.RWMutex
	blobs  map[string]*blob
	staged map[string]map[string][]byte
	sorted []string // nil: must be sorted anew
	etags  int
}

func newContainer() *container {
	return &container{blobs: map[string]*blob{}, staged: map[string]map[string][]byte{}}
}

var words = []string{"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}

func (c *container) fillSmall(shape string) {
	var classes, files int
	var size int64
	if _, err := fmt.Sscanf(shape, "%dx%dx%d", &classes, &files, &size); err != nil {
		return
	}
	for k := 0; k < classes; k++ {
		class := fmt.Sprintf("%d - %s", k, words[k%len(words)])
		for i := 0; i < files; i++ {
			c.computed(fmt.Sprintf("MNIST_FLAT/%s/%s_%d.jpg", class, class, i), size)
		}
	}
}

func (c *container) fillBig(size int64) {
	if size > 0 {
		c.computed("big/one.bin", size)
	}
}

func (c *container) computed(name string, size int64) {
	hash := fnv.New64a()
	hash.Write([]byte(name))
	c.store(name, &blob{size: size, seed: hash.Sum64()})
}

func (c *container) store(name string, b *blob) *blob {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.etags++
	b.etag, b.modified = fmt.Sprintf("0x%X", c.etags), time.Now().UTC()
	if c.blobs[name] == nil {
		c.sorted = nil
	}
	c.blobs[name] = b
	return b
}

func (c *container) find(name string) *blob {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.blobs[name]
}

func (c *container) remove(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, was := c.blobs[name]
	delete(c.blobs, name)
	c.sorted = nil
	return was
}

// names returns all names in order; the slice is never changed once it was handed out.
func (c *container) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sorted == nil {
		c.sorted = make([]string, 0, len(c.blobs))
		for name := range c.blobs {
			c.sorted = append(c.sorted, name)
		}
		sort.Strings(c.sorted)
	}
	return c.sorted
}

// list answers List Blobs: blobs and, with a delimiter, prefixes in one order; the marker is the name to go on from.
func (c *container) list(query map[string][]string) []byte {
	first := func(key string) string { return strings.Join(query[key], "") }
	prefix, delimiter := first("prefix"), first("delimiter")
	limit, err := strconv.Atoi(first("maxresults"))
	if err != nil || limit > 5000 {
		limit = 5000
	}
	names := c.names()
	from := max(prefix, first("marker"))
	var out strings.Builder
	out.WriteString(`<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
	marker := ""
	count := 0
	for i := sort.SearchStrings(names, from); i < len(names) && strings.HasPrefix(names[i], prefix); count++ {
		if count == limit {
			marker = names[i]
			break
		}
		name := names[i]
		if cut := strings.Index(name[len(prefix):], delimiter); delimiter != "" && cut >= 0 {
			group := name[:len(prefix)+cut+len(delimiter)]
			out.WriteString("<BlobPrefix><Name>" + escaped(group) + "</Name></BlobPrefix>")
			i = sort.SearchStrings(names, group[:len(group)-1]+string(group[len(group)-1]+1))
			continue
		}
		c.writeEntry(&out, name)
		i++
	}
	fmt.Fprintf(&out, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", escaped(marker))
	return []byte(out.String())
}

func (c *container) writeEntry(out *strings.Builder, name string) {
	b := c.find(name)
	if b == nil {
		return
	}
	fmt.Fprintf(out, "<Blob><Name>%s</Name><Properties><Last-Modified>%s</Last-Modified><Etag>%s</Etag>"+
		"<Content-Length>%d</Content-Length><Content-Type>application/octet-stream</Content-Type>"+
		"<BlobType>BlockBlob</BlobType></Properties><Metadata>",
		escaped(name), b.modified.Format(http.TimeFormat), b.etag, b.size)
	for key, value := range b.metadata {
		fmt.Fprintf(out, "<%s>%s</%s>", key, escaped(value), key)
	}
	out.WriteString("</Metadata></Blob>")
}

func escaped(text string) string {
	var out strings.Builder
	xml.EscapeText(&out, []byte(text))
	return out.String()
}
