"""The dashboard: `streamlit run app.py`, or `hsim dashboard`."""

if __name__ == "__main__":  # worker processes import this file too, and need none of it
    from hsim.dashboard.main import main

    main()
