module storestub

go 1.21
