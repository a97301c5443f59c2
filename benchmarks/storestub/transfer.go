package main

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const chunkBytes = 256 << 10

// A link lets so many bytes a second through, whoever sends them.
type link struct {
	mu   sync.Mutex
	rate int64
	free time.Time
}

func newLink(rate int64) *link { return &link{rate: rate} }

func (l *link) pass(n int) {
	if l.rate == 0 {
		return
	}
	l.mu.Lock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	wait := time.Until(l.free)
	l.mu.Unlock()
	if wait > time.Millisecond {
		time.Sleep(wait)
	}
}

type count struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

type counts struct {
	mu sync.Mutex
	of map[string]*count
}

func (c *counts) add(operation string, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]*count{}
	}
	if c.of[operation] == nil {
		c.of[operation] = &count{}
	}
	c.of[operation].Requests++
	c.of[operation].Bytes += int64(bytes)
}

func (c *counts) report(w http.ResponseWriter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]*count{}
	}
	json.NewEncoder(w).Encode(c.of)
	c.of = nil
}

func describe(w http.ResponseWriter, b *blob) {
	w.Header().Set("ETag", `"`+b.etag+`"`)
	w.Header().Set("Last-Modified", b.modified.Format(http.TimeFormat))
	w.Header().Set("x-ms-blob-type", "BlockBlob")
	for key, value := range b.metadata {
		w.Header().Set("x-ms-meta-"+key, value)
	}
}

func metadataOf(r *http.Request) map[string]string {
	found := map[string]string{}
	for key, values := range r.Header {
		if name, is := strings.CutPrefix(strings.ToLower(key), "x-ms-meta-"); is {
			found[name] = values[0]
		}
	}
	return found
}

func (s *server) get(w http.ResponseWriter, r *http.Request, c *container, name string) {
	b := c.find(name)
	if b == nil {
		fail(w, 404, "BlobNotFound")
		return
	}
	if want := strings.Trim(r.Header.Get("If-Match"), `"`); want != "" && want != "*" && want != b.etag {
		fail(w, 412, "ConditionNotMet")
		return
	}
	start, end, ranged := parseRange(r, b.size)
	if start > end && b.size > 0 {
		fail(w, 416, "InvalidRange")
		return
	}
	describe(w, b)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Accept-Ranges", "bytes")
	w.Header().Set("Content-Length", strconv.FormatInt(end-start+1, 10))
	if ranged {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end, b.size))
		w.WriteHeader(206)
	}
	if r.Method == "HEAD" {
		s.counts.add("head", 0)
		return
	}
	s.counts.add("get", int(end-start+1))
	s.send(w, b, start, end)
}

func (s *server) send(w io.Writer, b *blob, start, end int64) {
	chunk := make([]byte, min(chunkBytes, end-start+1))
	for at := start; at <= end; at += int64(len(chunk)) {
		piece := chunk[:min(int64(len(chunk)), end-at+1)]
		b.read(piece, at)
		s.down.pass(len(piece))
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

func parseRange(r *http.Request, size int64) (start, end int64, ranged bool) {
	value := r.Header.Get("x-ms-range")
	if value == "" {
		value = r.Header.Get("Range")
	}
	end = size - 1
	from, to, found := strings.Cut(strings.TrimPrefix(value, "bytes="), "-")
	if value == "" || !found {
		return 0, end, false
	}
	start, _ = strconv.ParseInt(from, 10, 64)
	if last, err := strconv.ParseInt(to, 10, 64); err == nil && last < end {
		end = last
	}
	return start, end, true
}

func (s *server) receive(r *http.Request, operation string) []byte {
	var data []byte
	if r.ContentLength > 0 {
		data = make([]byte, 0, r.ContentLength)
	}
	chunk := make([]byte, chunkBytes)
	for {
		n, err := r.Body.Read(chunk)
		data = append(data, chunk[:n]...)
		s.up.pass(n)
		if err != nil {
			break
		}
	}
	s.counts.add(operation, len(data))
	return data
}

func (s *server) put(w http.ResponseWriter, r *http.Request, c *container, name string) {
	data := s.receive(r, "put")
	if !mayReplace(w, r, c.find(name)) {
		return
	}
	one := []block{{data: data}}
	describe(w, c.store(name, &blob{size: int64(len(data)), blocks: one, metadata: metadataOf(r)}))
	w.WriteHeader(201)
}

func mayReplace(w http.ResponseWriter, r *http.Request, present *blob) bool {
	want := strings.Trim(r.Header.Get("If-Match"), `"`)
	switch {
	case r.Header.Get("If-None-Match") == "*" && present != nil:
		fail(w, 409, "BlobAlreadyExists")
	case want != "" && (present == nil || (want != "*" && want != present.etag)):
		fail(w, 412, "ConditionNotMet")
	default:
		return true
	}
	return false
}

func (s *server) putBlock(w http.ResponseWriter, r *http.Request, c *container, name, id string) {
	data := s.receive(r, "put block")
	c.mu.Lock()
	if c.staged[name] == nil {
		c.staged[name] = map[string][]byte{}
	}
	c.staged[name][id] = data
	c.mu.Unlock()
	w.WriteHeader(201)
}

type blockList struct {
	Items []struct {
		XMLName xml.Name
		ID      string `xml:",chardata"`
	} `xml:",any"`
}

func (s *server) putBlockList(w http.ResponseWriter, r *http.Request, c *container, name string) {
	var wanted blockList
	if err := xml.Unmarshal(s.receive(r, "put block list"), &wanted); err != nil {
		fail(w, 400, "InvalidXmlDocument")
		return
	}
	present := c.find(name)
	if !mayReplace(w, r, present) {
		return
	}
	made, ok := c.assemble(name, present, wanted)
	if !ok {
		fail(w, 400, "InvalidBlockList")
		return
	}
	made.metadata = metadataOf(r)
	describe(w, c.store(name, made))
	w.WriteHeader(201)
}

func (c *container) assemble(name string, present *blob, wanted blockList) (*blob, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[string][]byte{}
	if present != nil {
		for _, b := range present.blocks {
			known[b.id] = b.data
		}
	}
	made := &blob{blocks: []block{}}
	for _, item := range wanted.Items {
		data, ok := known[item.ID]
		if staged, is := c.staged[name][item.ID]; is && item.XMLName.Local != "Committed" {
			data, ok = staged, true
		}
		if !ok {
			return nil, false
		}
		made.blocks = append(made.blocks, block{item.ID, made.size, data})
		made.size += int64(len(data))
	}
	delete(c.staged, name)
	return made, true
}

func (c *container) writeBlockList(w http.ResponseWriter, name string) {
	b := c.find(name)
	if b == nil {
		fail(w, 404, "BlobNotFound")
		return
	}
	describe(w, b)
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, `<?xml version="1.0" encoding="utf-8"?><BlockList><CommittedBlocks>`)
	for _, one := range b.blocks {
		if one.id == "" {
			continue
		}
		fmt.Fprintf(w, "<Block><Name>%s</Name><Size>%d</Size></Block>", escaped(one.id), len(one.data))
	}
	fmt.Fprint(w, "</CommittedBlocks><UncommittedBlocks></UncommittedBlocks></BlockList>")
}
