from _fpmd.main import main

raise SystemExit(main())
